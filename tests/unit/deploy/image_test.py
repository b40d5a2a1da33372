"""The Dockerfile copies what a build needs, and nothing else; scripts are free of known mistakes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from training_fsm.settings import Settings

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def _copied() -> set[str]:
    """What comes out of the build's context."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return {name for line in lines for name in line.split()[:-1]}


@pytest.mark.parametrize(
    "command",
    [["hadolint", "Dockerfile"], ["shellcheck", "deploy/smoke.sh", ".ci/run"]],
    ids=lambda command: command[0],
)
def test_linter_finds_nothing(command: list[str]) -> None:
    """hadolint and shellcheck, both from wheels."""
    program, *files = command
    done = subprocess.run(
        [str(BIN / program), *files], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    """The .dockerignore lets through exactly what the Dockerfile copies."""
    let_through = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(let_through) == _copied()
    assert [name for name in let_through if not (ROOT / name).exists()] == []


def test_what_the_wheel_is_made_of_is_copied() -> None:
    """Whatever pyproject.toml names as part of the wheel is in the image's build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert needed == _copied()


def test_stages_and_extras_exist() -> None:
    """A stage that is copied from is declared, and the default extra is one of the package's."""
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"COPY --from=(\S+)", DOCKERFILE)) <= stages
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    used = set(
        re.findall(r"EXTRAS(?:=|: )([a-z]+)$", DOCKERFILE + (ROOT / "docker-compose.yml").read_text("utf-8"), re.M)
    )
    assert used == {"worker", "local"}
    assert used <= project["optional-dependencies"].keys()
    assert project["requires-python"] == ">=3.11"
    assert "ARG PYTHON_VERSION=3.11\n" in DOCKERFILE


def test_it_runs_as_nobody_special() -> None:
    """The last user is a number, and not root's."""
    users = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["${UID}"]
    (uid,) = re.findall(r"^ARG UID=(\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(uid) > 1000


def test_its_variables_are_settings() -> None:
    """What the image sets of ours is a setting, and the port that it exposes is the one it serves health on."""
    variables = re.findall(r"TRAINING_FSM_(\w+)=(\S+)", DOCKERFILE)
    fields = {name.lower(): value for name, value in variables}
    assert fields.keys() <= Settings.model_fields.keys()
    assert Settings(**fields).http_port == 9464
    assert "\nEXPOSE 9464\n" in DOCKERFILE


def test_no_host_of_a_registry_is_named() -> None:
    """Where packages come from is for whoever builds: in the environment, as pip takes it."""
    files = (
        DOCKERFILE,
        (ROOT / "docker-compose.yml").read_text("utf-8"),
        (ROOT / "deploy/smoke.sh").read_text("utf-8"),
    )
    assert [found for text in files for found in re.findall(r"https://\S+", text)] == []
