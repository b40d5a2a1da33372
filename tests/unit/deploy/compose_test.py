"""docker-compose.yml is read by Compose itself, and says nothing that our programs would not understand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from training_fsm.cli.app import app
from training_fsm.settings import Settings

ROOT = Path(__file__).parents[3]
COMPOSE = Path(sys.executable).with_name("docker-compose")
"""Compose, from the wheel; without an engine it still reads, checks and resolves."""
OURS = {"migrate", "orchestrator", "worker"}
STANDINS = {"ingest": "training_fsm.local.standin.ingest", "preprocess": "training_fsm.local.standin.preprocess"}
PREFIX = "TRAINING_FSM_"

Service = dict[str, object]


def _config(*arguments: str, project: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Resolve the file as `docker compose config` does, with these variables and no others of ours."""
    names = ("POSTGRES_", "KAFKA_", "MLFLOW_", "FEAST_", "INGEST_", "GRAFANA_", "PROMETHEUS_", "TORCH_", "COMPOSE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    command = [str(COMPOSE), "--file", str(project / "docker-compose.yml"), "--profile", "*", "config", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment | variables, cwd=project
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    """The services with everything merged and filled in."""
    done = _config("--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Service] = json.loads(done.stdout)["services"]
    return found


def test_it_keeps_to_the_specification() -> None:
    """Compose checks it against the specification's schema, and nothing is left to warn of."""
    done = _config("--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """The check above is a check: one letter too many in a key fails it."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    (tmp_path / "docker-compose.yml").write_text(text.replace("healthcheck:", "healthchecks:", 1), encoding="utf-8")
    done = _config("--quiet", project=tmp_path)
    assert done.returncode != 0
    assert "healthchecks" in done.stderr


def test_services_are_those_of_the_docs(services: dict[str, Service]) -> None:
    """What a deployment consists of, and what only a profile adds."""
    profiles = {name: tuple(service.get("profiles", ())) for name, service in services.items()}
    assert profiles == {
        "postgres": (),
        "kafka": (),
        "mlflow": (),
        "migrate": (),
        "orchestrator": (),
        "worker": (),
        "ingest": ("standins",),
        "preprocess": ("standins",),
        "prometheus": ("observability",),
        "grafana": ("observability",),
    }


@pytest.mark.parametrize("name", sorted(OURS))
def test_command_is_one_of_ours(services: dict[str, Service], name: str) -> None:
    """What follows the image's entrypoint is parsed by our command line as a whole."""
    words = services[name]["command"]
    assert isinstance(words, list)
    assert "entrypoint" not in services[name] or services[name]["entrypoint"] is None
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    context = group.make_context("training-fsm", list(words))
    found, command, rest = group.resolve_command(context, words)
    assert command is not None
    command.make_context(found, list(rest), parent=context)


def test_mistyped_command_is_none_of_ours() -> None:
    """The check above is a check: an option that nobody has is refused."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    _, command, rest = group.resolve_command(group.make_context("training-fsm", ["worker"]), ["worker", "--nice"])
    assert command is not None
    with pytest.raises(Exception, match="--nice"):
        command.make_context("worker", list(rest))


@pytest.mark.parametrize("name", sorted(STANDINS))
def test_standin_knows_its_arguments(services: dict[str, Service], name: str) -> None:
    """The stand-ins start with arguments that they have."""
    words = services[name]["command"]
    assert isinstance(words, list)
    assert services[name]["entrypoint"] == ["python", "-m", STANDINS[name]]
    shown = subprocess.run(
        [sys.executable, "-m", STANDINS[name], "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    options = [word for word in words if word.startswith("--")]
    assert options
    assert [option for option in options if option not in shown.split()] == []


def test_mlflow_knows_its_arguments(services: dict[str, Service]) -> None:
    """MLflow's server is of our own worker image, so of the version that workers speak with."""
    words = services["mlflow"]["command"]
    assert isinstance(words, list)
    assert services["mlflow"]["image"] == services["worker"]["image"]
    assert services["mlflow"]["entrypoint"] == ["mlflow"]
    code = (
        "import sys; from mlflow.cli import cli; context = cli.make_context('mlflow', sys.argv[1:]);"
        "name, command, rest = cli.resolve_command(context, sys.argv[1:]);"
        "print(command.make_context(name, list(rest), parent=context).params['allowed_hosts'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mlflow:5000" in done.stdout


@pytest.mark.parametrize("name", sorted(OURS))
def test_variables_are_settings(
    services: dict[str, Service], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every variable of ours is a setting, and its value is one that the setting takes."""
    environment = services[name]["environment"]
    assert isinstance(environment, dict)
    ours = {key.removeprefix(PREFIX).lower(): value for key, value in environment.items() if key.startswith(PREFIX)}
    assert ours.keys() <= Settings.model_fields.keys()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)  # no .env of whoever runs this
    settings = Settings(home=tmp_path)
    assert {key: str(getattr(settings, key)) for key in ours} == ours


def test_addresses_are_those_of_services(services: dict[str, Service]) -> None:
    """A role asks for its neighbours under the names that they have in the network, on the ports they listen on."""
    environment = services["worker"]["environment"]
    assert isinstance(environment, dict)
    assert environment["TRAINING_FSM_BOOTSTRAP_SERVERS"] == "kafka:9092"
    assert "@postgres:5432/" in environment["TRAINING_FSM_DATABASE_URL"]
    listeners = services["kafka"]["environment"]
    assert isinstance(listeners, dict)
    assert "PLAINTEXT://kafka:9092" in listeners["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert environment["TRAINING_FSM_MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "--port=5000" in services["mlflow"]["command"]
    assert environment["TRAINING_FSM_INGEST_URL"] == "http://ingest:8080/api/v1"


def test_who_is_waited_for_says_when_it_is_well(services: dict[str, Service]) -> None:
    """Each condition can come true: a healthy one has a check, of its own or of its image; one that completes ends."""
    conditions = [
        (waited, condition["condition"])
        for service in services.values()
        for waited, condition in (service.get("depends_on") or {}).items()
    ]
    assert conditions
    for waited, condition in conditions:
        match condition:
            case "service_healthy":
                assert "test" in services[waited].get("healthcheck", {}), waited
            case "service_completed_successfully":
                assert services[waited]["restart"] == "no"
            case other:
                raise AssertionError(f"{waited}: {other}")


def test_every_long_running_service_is_checked(services: dict[str, Service]) -> None:
    """By a check in the file, or by that of our image; the one-shot has none."""
    unchecked = {name for name, service in services.items() if "test" not in service.get("healthcheck", {})}
    assert unchecked == {"migrate", "orchestrator", "worker"}
    assert services["migrate"]["healthcheck"] == {"disable": True}


def test_mounted_files_exist(services: dict[str, Service]) -> None:
    """Docker would make a folder where a file of ours is missing."""
    mounted = [
        Path(volume["source"])
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert len(mounted) == 4
    assert [path for path in mounted if not path.exists()] == []


def test_nothing_is_open_to_the_network(services: dict[str, Service]) -> None:
    """Databases with well-known passwords are published on loopback only."""
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 6
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_a_password_of_ones_own_reaches_everybody() -> None:
    """POSTGRES_PASSWORD is the server's and that of all who connect to it."""
    done = _config("--format", "json", POSTGRES_PASSWORD="a-secret")
    found = json.loads(done.stdout)["services"]
    assert found["postgres"]["environment"]["POSTGRES_PASSWORD"] == "a-secret"
    urls = [found[name]["environment"]["TRAINING_FSM_DATABASE_URL"] for name in sorted(OURS)]
    assert all("training_fsm:a-secret@" in url for url in urls)
    assert any("training_fsm:a-secret@" in word for word in found["mlflow"]["command"])
