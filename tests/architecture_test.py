"""Who may import whom, and what a process loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "stable_baselines3", "feast", "mlflow", "pandas", "numpy")
LOOK = "import sys; import {module}; print(*[name for name in {heavy!r} if name in sys.modules])"


def test_imports_point_inwards() -> None:
    """The contracts of import-linter in pyproject.toml are kept."""
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    root = Path(__file__).parents[1]
    done = subprocess.run(lint, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    "module",
    ["training_fsm.orchestrator", "training_fsm.cli.app", "training_fsm.settings", "training_fsm.store.migrate"],
)
def test_light_processes_load_nothing_heavy(module: str) -> None:
    """Minutes of imports and gigabytes of libraries are the worker's alone."""
    code = LOOK.format(module=module, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ,
    )
    assert done.stdout.split() == []
