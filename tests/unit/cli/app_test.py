import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training_fsm.cli.app import app

HEAVY = (
    "torch",
    "mlflow",
    "feast",
    "stable_baselines3",
    "pandas",
    "numpy",
    "sqlalchemy",
    "confluent_kafka",
    "psycopg",
    "alembic",
)

PROBE = """
import sys
from training_fsm.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as done:
    assert not done.code, done.code
print("LOADED", *sorted(sys.modules))
"""


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "audit"),
        (["run", "--help"], "submit"),
        (["run", "submit", "--help"], "--wait"),
        (["audit", "verify", "--help"], "--no-artifacts"),
        (["model", "lineage", "--help"], "NAME@champion"),
    ],
)
def test_help_loads_nothing_heavy(words: list[str], shown: str) -> None:
    """Help answers at once, since no library that takes its time is imported for it."""
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True, timeout=60
    )
    text, _, loaded = probe.stdout.partition("LOADED")
    assert shown in text
    assert "training_fsm.cli.run_commands" in loaded.split()
    assert not {module.partition(".")[0] for module in loaded.split()} & set(HEAVY)


def test_the_version_is_the_package_s() -> None:
    """`--version` says which build this is."""
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == version("training-fsm")


def test_a_wrong_setting_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables are checked like any input."""
    monkeypatch.setenv("TRAINING_FSM_HOME", str(tmp_path))
    monkeypatch.setenv("TRAINING_FSM_LEASE_S", "-1")
    result = CliRunner().invoke(app, ["run", "list"])
    assert result.exit_code == 2
    assert result.stderr.startswith("setting lease_s: expected greater than 0")


@pytest.mark.parametrize("url", ["nonsense", "mysql://me:secret@host/database"])
def test_a_wrong_database_url_is_said_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is expected is shown, what was given may hold a secret."""
    monkeypatch.setenv("TRAINING_FSM_DATABASE_URL", url)
    result = CliRunner().invoke(app, ["run", "list"])
    assert result.exit_code == 2
    assert "postgresql+psycopg://" in result.stderr
    assert "secret" not in result.stderr


def test_broken_services_are_told(tmp_path: Path) -> None:
    """A services.json that is no JSON is bad input, no traceback."""
    (tmp_path / "services.json").write_text("{")
    result = CliRunner().invoke(app, ["--home", str(tmp_path), "run", "list"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("settings: ")


def test_an_unknown_state_lists_the_known() -> None:
    """typer's own word for it names the choices."""
    result = CliRunner().invoke(app, ["run", "list", "--state", "LOST"])
    assert result.exit_code == 2
    assert "awaiting_features" in result.stderr
