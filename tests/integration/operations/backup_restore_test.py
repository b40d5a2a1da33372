"""Backup and restore: docs/operations.md is followed to the letter, with real parts."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from mlflow import MlflowClient

from training_fsm.domain import events as e
from training_fsm.domain.commands import CancelRun, RequestTraining
from training_fsm.domain.request import read_request
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.broker import start_apache_kafka, start_embedded_broker
from training_fsm.local.mlflow_server import MlflowServer
from training_fsm.local.postgres import PostgresServer, start_postgres
from training_fsm.local.postgres_account import wheel_programs
from training_fsm.local.process import free_port, start_process
from training_fsm.local.standin.kafka import create_missing_topics
from training_fsm.local.standin.wire import TOPICS
from training_fsm.messaging.command_sender import send_command
from training_fsm.messaging.topics import Topics, create_missing
from training_fsm.settings import Settings
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.store.migrate import migrate

EVENTS = "events.train-model"
REQUEST: dict[str, object] = {
    "mode": "from_scratch",
    "model": f"restored-{uuid.uuid4().hex[:8]}",
    "symbol": "EURUSD",
    "base_timeframe": "1h",
    "timeframe": "4h",
    "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
    "features": {
        "semver": "1.0.0",
        "feature_definitions": [
            {"name": "close_price"},
            {"name": "rsi", "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 14}]},
        ],
    },
    "data": {"columns": {"close": "close_price_value"}},
    "agent": {
        "seed": 7,
        "total_timesteps": 8_192,
        "n_envs": 2,
        "net_arch": [16],
        "checkpoint_every_timesteps": 512,
        "hyperparameters": {"n_steps": 128, "batch_size": 64, "n_epochs": 5},
    },
    "evaluation": {"gate": [{"metric": "max_drawdown_fraction", "max": 0.99}]},
}


@dataclass(frozen=True, slots=True)
class Published:
    """A message on the events topic."""

    partition: int
    position: int
    ce_id: str
    value: bytes

    @property
    def type(self) -> str:
        return str(json.loads(self.value)["type"])


@dataclass(frozen=True, slots=True)
class Site:
    """Everything but the database: it outlives the restore."""

    folder: Path
    environment: dict[str, str]
    programs: Path
    kafka_tools: Path | None
    """Those of Apache Kafka, where the broker is that and its distribution has them."""

    def settings(self, server: PostgresServer) -> Settings:
        names = {name.removeprefix("TRAINING_FSM_").lower(): value for name, value in self.environment.items()}
        return Settings.model_validate(names | {"database_url": server.url})

    def follow(self, commands: str, **variables: str) -> str:
        """Type what the runbook says, and give back what it prints."""
        path = os.pathsep.join((str(Path(sys.executable).parent), str(self.programs), os.environ["PATH"]))
        env = os.environ | self.environment | variables | {"PATH": path}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def serving(self, server: PostgresServer, name: str, *roles: str) -> Iterator[None]:
        """These roles on a database, until the block ends."""
        env = os.environ | self.environment | {"TRAINING_FSM_DATABASE_URL": server.url}
        with ExitStack() as stack:
            for role in roles:
                argv = [sys.executable, "-m", "training_fsm", role]
                log = self.folder / f"{role}-{name}.log"
                stack.enter_context(start_process(f"{role}-{name}", argv, log=log, env=env))
            yield


def _programs() -> Path:
    named = os.environ.get("PG_BIN")
    programs = Path(named) if named else wheel_programs()
    if not (programs / "pg_dump").exists():
        pytest.skip(f"needs pg_dump, and there is none in {programs}")
    return programs


@pytest.fixture
def site(tmp_path: Path, mlflow_server: MlflowServer, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A broker of this test's own, since topics have no prefix here, and the stand-ins."""
    programs, kafka_tools = _programs(), None
    with ExitStack() as stack:
        if os.environ.get("TEST_BROKER") == "kafka":
            home = request.getfixturevalue("kafka_home")
            broker = start_apache_kafka(home, tmp_path / "kafka", log=tmp_path / "kafka.log")
            kafka_tools = home / "bin" if (home / "bin" / "kafka-consumer-groups.sh").exists() else None
        else:
            broker = start_embedded_broker(log=tmp_path / "kafka.log")
        stack.enter_context(broker)
        create_missing_topics(broker.bootstrap_servers, TOPICS)
        create_missing(AdminClient({"bootstrap.servers": broker.bootstrap_servers}), Topics.with_prefix("").all, 3, 1)
        feast, port = tmp_path / "feast", free_port()
        feast.mkdir()
        standin, brokers = "training_fsm.local.standin", ["--bootstrap-servers", broker.bootstrap_servers]
        preprocess = [sys.executable, "-m", f"{standin}.preprocess", *brokers, "--feast-repo", str(feast)]
        ingest = [sys.executable, "-m", f"{standin}.ingest", *brokers, "--port", str(port)]
        stack.enter_context(start_process("preprocess", preprocess, log=tmp_path / "preprocess.log"))
        stack.enter_context(start_process("ingest", ingest, log=tmp_path / "ingest.log"))
        facts = {
            "home": str(tmp_path / "home"),
            "bootstrap_servers": broker.bootstrap_servers,
            "topic_partitions": "3",
            "ingest_url": f"http://127.0.0.1:{port}/api/v1",
            "feast_repo": str(feast),
            "mlflow_tracking_uri": mlflow_server.url,
            "lease_s": "3",
            "heartbeat_s": "0.5",
        }
        environment = {f"TRAINING_FSM_{name.upper()}": fact for name, fact in facts.items()}
        yield Site(tmp_path, environment, programs, kafka_tools)


@contextmanager
def _cluster(site: Site, name: str) -> Iterator[PostgresServer]:
    data_dir = site.folder / name
    binaries = Path(named) if (named := os.environ.get("PG_BIN")) else None
    with start_postgres(data_dir, log=site.folder / f"{name}.log", binaries=binaries) as server:
        yield server
    shutil.rmtree(data_dir)


@contextmanager
def _engine(url: str) -> Iterator[sa.Engine]:
    engine = make_engine(url, application_name="test")
    try:
        yield engine
    finally:
        engine.dispose()


def _libpq(server: PostgresServer) -> str:
    return sa.make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)


def _wait(engine: sa.Engine, run_id: str, reached: Callable[[Run], bool], timeout_s: float = 120) -> Run:
    deadline = time.monotonic() + timeout_s
    run = None
    while time.monotonic() < deadline:
        run = PostgresEventLog(engine).load(run_id)
        if run is not None and reached(run):
            return run
        time.sleep(0.05)
    raise AssertionError(f"run {run_id} stands at {run and (run.state, run.failure)} after {timeout_s} s")


def _events(engine: sa.Engine) -> list[sa.Row[tuple[int, str, str, str]]]:
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT position, stream, type, payload::text FROM events ORDER BY 1"))
        return list(found)


def _published(settings: Settings, up_to: int, timeout_s: float = 30) -> list[Published]:
    """The events topic from its beginning, once a position has come, and a moment longer."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(EVENTS, number, OFFSET_BEGINNING) for number in range(settings.topic_partitions)])
    found: list[Published] = []
    until = time.monotonic() + timeout_s
    try:
        while time.monotonic() < until:
            for message in consumer.consume(1000, timeout=0.2):
                assert message.error() is None, message.error()
                headers = dict(message.headers() or [])
                position, ce_id = int(headers["ce_position"]), str(headers["ce_id"], "utf-8")
                found.append(Published(message.partition() or 0, position, ce_id, message.value() or b""))
                if position == up_to:
                    until = min(until, time.monotonic() + 1)
    finally:
        consumer.close()
    assert any(message.position == up_to for message in found), f"position {up_to} has not gone out"
    return found


def _assert_nothing_under_an_old_position(messages: list[Published]) -> None:
    by_position, by_id, places = defaultdict(set), defaultdict(set), defaultdict(list)
    for message in messages:
        by_position[message.position].add((message.ce_id, message.value))
        by_id[message.ce_id].add(message.value)
        places[message.partition].append(message.position)
    assert [position for position, said in by_position.items() if len(said) > 1] == []
    assert [ce_id for ce_id, said in by_id.items() if len(said) > 1] == []
    for positions in places.values():
        assert positions == sorted(positions)


def _only(engine: sa.Engine, kind: type[e.Event]) -> dict[str, object]:
    (found,) = [row for row in _events(engine) if row.type == kind.type()]
    return dict(json.loads(found.payload)) | {"position": found.position}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:pydantic")
def test_the_runbook_brings_a_log_back_and_its_runs_go_on(site: Site, runbook: list[str]) -> None:
    """Dumped while a run trains, restored after it was registered: it is trained to the same version once more.

    Commands that came after the backup are obeyed again, and on Kafka nothing stands under an old position.
    """
    backup, read_in, point, look, _, rewind = runbook
    with _cluster(site, "old") as old, _engine(old.url) as engine:
        settings = site.settings(old)
        migrate(engine)
        with site.serving(old, "old", "worker", "orchestrator"):
            send_command(settings, RequestTraining(run_id="trained", request=read_request(json.dumps(REQUEST))))
            _wait(engine, "trained", lambda run: bool(run.checkpoints))
            site.follow(backup, DATABASE=_libpq(old))
            send_command(settings, RequestTraining(run_id="later", request=read_request(json.dumps(REQUEST))))
            send_command(settings, CancelRun(run_id="later", actor="somebody", why="a test"))
            first = _wait(engine, "trained", lambda run: run.ended)
            _wait(engine, "later", lambda run: run.state is State.CANCELLED)
            written = _events(engine)
            before = _published(settings, written[-1].position)
        assert first.state is State.REGISTERED, first.failure

    if site.kafka_tools is not None:  # the topics would be read again all the same
        site.follow(f'PATH="{site.kafka_tools}:$PATH"; {rewind}')
    with _cluster(site, "new") as new, _engine(new.url) as engine:
        site.follow(read_in + point, NEW_DATABASE=_libpq(new))
        kept = len(_events(engine))
        restored = _wait(engine, "trained", lambda run: run.state is State.TRAINING, timeout_s=0.1)
        assert restored.checkpoints
        with site.serving(new, "new", "worker", "orchestrator"):
            again = _wait(engine, "trained", lambda run: run.ended)
            _wait(engine, "later", lambda run: run.state is State.CANCELLED)
            rows = _events(engine)
            after = _published(site.settings(new), rows[-1].position)
        said = site.follow(look, NEW_DATABASE=_libpq(new), TRAINING_FSM_DATABASE_URL=new.url)

    assert written[:kept] == rows[:kept]
    last, highest = written[kept - 1].position, max(message.position for message in before)
    restoring = [row for row in rows if row.type == "log_restored"]
    assert [json.loads(row.payload) for row in restoring] == [{"last_position": last, "published_position": highest}]
    assert restoring[0].position > highest > last
    assert rows[kept] == restoring[0], "the first that the restored log takes"
    assert f'"published_position":{highest}' in said
    assert [row.type for row in rows if row.stream == "run-later"].count("run_cancelled") == 1

    assert again.state is State.REGISTERED, again.failure
    assert again.token > restoring[0].position, "no token of before"
    assert again.registered == first.registered, "the registry's version was found again"
    assert again.checkpoints[-1].artifact.sha256 == first.checkpoints[-1].artifact.sha256
    versions = MlflowClient(settings.mlflow_tracking_uri).search_model_versions(f"name='{REQUEST['model']}'")
    assert len(versions) == 1

    _assert_nothing_under_an_old_position(after)
    assert {message.position for message in after} >= {row.position for row in rows}
    assert len({message.value for message in after if message.type == "log_restored"}) == 1
    void = {message.position for message in after if last < message.position < restoring[0].position}
    assert void == {row.position for row in written[kept:]}, "what was lost had gone out, and nothing else stands there"
