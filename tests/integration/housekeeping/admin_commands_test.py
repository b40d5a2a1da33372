"""`training-fsm admin …` on real Postgres, MLflow and a broker."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from typer.testing import CliRunner, Result

from training_fsm.cli.app import app
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_models import MlflowModels
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.domain import events as e
from training_fsm.domain.facts import Failure
from training_fsm.domain.states import State
from training_fsm.housekeeping_timer import HousekeepingTimer
from training_fsm.local.broker import Broker
from training_fsm.messaging.kafka import make_admin
from training_fsm.messaging.topics import Topics, create_missing
from training_fsm.ports import Cause
from training_fsm.settings import Settings
from training_fsm.store.engine import ALIASES_LOCK, HOUSEKEEPING_LOCK, RELAY_LEADER_LOCK

if TYPE_CHECKING:
    from conftest import House

Cli = Callable[..., Result]

FAILED = e.RunFailed(reason=Failure(kind="training_error", words="w"), failed_from=State.TRAINING)


@pytest.fixture
def cli(house: "House", broker: Broker, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with the house's services."""
    settings = {
        "HOME": str(tmp_path),
        "DATABASE_URL": house.engine.url.render_as_string(hide_password=False),
        "MLFLOW_TRACKING_URI": house.mlflow_url,
        "BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "TOPIC_PREFIX": topic_prefix,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"TRAINING_FSM_{name}", value)
    monkeypatch.setenv("NO_COLOR", "1")
    create_missing(make_admin(Settings()), Topics.with_prefix(topic_prefix).all, 1, 1)
    return lambda *words: CliRunner().invoke(app, ["admin", *words])


@contextmanager
def _held(house: "House", lock: int) -> Iterator[None]:
    """Another process has this lock."""
    with house.engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": lock})
        yield
        connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), {"lock": lock})


def test_housekeeping_says_what_it_would_do_and_then_does_it(house: "House", cli: Cli) -> None:
    """A table for people, the same as JSON for programs; the second pass has nothing to do."""
    house.trained("r", 5)
    before = house.there()
    planned = cli("housekeeping", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "would release  r" in planned.stdout
    assert "older than the newest 3 checkpoints" in planned.stdout
    assert house.there() == before
    done = json.loads(cli("housekeeping", "--json").stdout)
    assert [(one["run_id"], one["state"], one["files"]) for one in done["released"]] == [("r", "TRAINING", 4)]
    assert (done["deleted"]["files"], done["complete"], done["dry_run"]) == (4, True, False)
    assert done["released"][0]["uris"] == house.released()
    assert len(house.there()) == len(before) - 4
    assert json.loads(cli("housekeeping", "--json").stdout)["released"] == []


def test_settings_decide_what_is_kept(house: "House", cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a failed run goes at once where it is wanted so."""
    house.trained("r", 1, [FAILED])
    assert json.loads(cli("housekeeping", "--dry-run", "--json").stdout)["released"] == []
    monkeypatch.setenv("TRAINING_FSM_RETENTION_DATA_DAYS", "0")
    result = cli("housekeeping")
    assert "FAILED for more than 0 days" in result.stdout
    assert "frozen.parquet" not in house.there()


def test_a_pass_that_left_something_exits_1(house: "House", cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be deleted is said, and stays released."""
    house.trained("r", 4)
    with monkeypatch.context() as away:
        away.setenv("TRAINING_FSM_MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        left = cli("housekeeping")
    assert left.exit_code == 1
    assert "2 files left for the next pass" in left.stdout
    assert json.loads(cli("housekeeping", "--json").stdout)["deleted"]["files"] == 2


def test_a_second_pass_at_once_is_told(house: "House", cli: Cli) -> None:
    """Another process is at it."""
    with _held(house, HOUSEKEEPING_LOCK):
        result = cli("housekeeping")
    assert (result.exit_code, result.stderr) == (1, "housekeeping is at work already, in another process\n")


def test_without_the_worker_s_libraries_one_line_says_so(
    house: "House", cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run needs none of them."""
    monkeypatch.setattr("training_fsm.cli.extras.find_spec", lambda name: None if name == "mlflow" else name)
    for words in (("housekeeping",), ("aliases",)):
        result = cli(*words)
        assert (result.exit_code, result.stderr) == (1, "needs mlflow: pip install 'training-fsm[worker]'\n")
    assert cli("housekeeping", "--dry-run").exit_code == 0


@pytest.fixture
def version(house: "House", topic_prefix: str, tmp_path: Path) -> str:
    """A model of the log, of which MLflow has the version and no alias."""
    connection, name = MlflowConnection(house.mlflow_url), f"model-{topic_prefix}"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    tracking_run = MlflowTracking(connection, name).open_run("r", {}, {})
    made = MlflowModels(connection).register(name, "r:1", folder, tracking_run, {})
    life = house.life("r")
    request = life[0].request.model_copy(update={"model": name})
    registered = life[-1].model_copy(update={"name": name, "version": made.version})
    with house.log.begin() as unit:
        unit.append(
            "r", [life[0].model_copy(update={"request": request}), *life[1:-1], registered], Cause("w", "w", "r")
        )
    return name


def test_aliases_are_compared_and_mended(house: "House", cli: Cli, version: str) -> None:
    """MLflow is made equal to the log, and a second look finds them equal."""
    client = MlflowClient(house.mlflow_url)
    planned = json.loads(cli("aliases", "--dry-run", "--json").stdout)
    expected = {"model": version, "alias": "candidate", "version": 1, "mlflow_version": None, "moved": False}
    assert planned == [expected]
    assert client.get_registered_model(version).aliases == {}
    assert "moved" in cli("aliases").stdout
    assert client.get_registered_model(version).aliases == {"candidate": "1"}
    assert "equal" in cli("aliases").stdout


def test_aliases_are_left_to_the_worker_that_compares_them(house: "House", cli: Cli) -> None:
    """Two at once could carry older ones after newer ones."""
    with _held(house, ALIASES_LOCK):
        result = cli("aliases")
    assert (result.exit_code, result.stderr) == (1, "a worker compares the aliases at this moment; try again\n")


def test_the_relay_is_wound_back_only_on_confirmation_and_while_nobody_leads(house: "House", cli: Cli) -> None:
    """Without --yes nothing happens; a position that has not gone out is refused."""
    house.append("r", *house.life("r")[:2])
    doubted = cli("relay", "--from", "0")
    assert doubted.exit_code == 2
    assert "--yes does it" in doubted.stderr
    with _held(house, RELAY_LEADER_LOCK):
        led = cli("relay", "--from", "0", "--yes")
    assert (led.exit_code, led.stderr) == (1, "an orchestrator leads the relay: stop all of them first\n")
    beyond = cli("relay", "--from", "2", "--yes")
    assert (beyond.exit_code, beyond.stderr[:36]) == (2, "--from 2: expected at most 1, the fi")
    assert cli("relay", "--from", "0", "--yes").stdout == "the next orchestrator publishes from position 1 on\n"


def test_the_orchestrator_s_timer_makes_passes(house: "House", cli: Cli) -> None:
    """In a process of its own, the first one at its start."""
    house.trained("r", 4)
    stop = threading.Event()
    thread = threading.Thread(target=HousekeepingTimer(24, Settings().home).run, args=(stop,))
    thread.start()
    try:
        for _ in range(600):
            if len(house.there()) == 7 or stop.wait(0.1):
                break
    finally:
        stop.set()
        thread.join()
    assert len(house.there()) == 7
