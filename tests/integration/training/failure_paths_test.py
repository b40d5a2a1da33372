"""What a real week brings to a run: each fault is made outside our code, and what came of it is read from the log."""

import json
import os
import queue
import resource
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from mlflow import MlflowClient
from typer.testing import CliRunner

from training_fsm.cli.app import app
from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.domain import events as e
from training_fsm.domain.commands import CancelRun, RequestTraining, RetryRun
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.request import read_request
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.broker import Broker
from training_fsm.local.mlflow_server import MlflowServer
from training_fsm.local.process import ManagedProcess, free_port, start_process, wait_until
from training_fsm.messaging.command_sender import send_command
from training_fsm.messaging.topics import Topics
from training_fsm.service.audit_service import verify
from training_fsm.store.audit_reads import PostgresAuditLog
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.worker.lease_keeper import SideWorkFailed
from training_fsm.worker.protocol import CurvePoint
from training_fsm.worker.uploads import Uploads, UploadsDone

from .conftest import REQUEST, Family, training_child
from .faulty_proxy import HttpProxy, TcpProxy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:pydantic")

E = TypeVar("E", bound=e.Event)

POLICY = {
    "TRAINING_FSM_CHILD_SILENCE_S": "4",
    "TRAINING_FSM_OUTAGE_PATIENCE_S": "3",
    "TRAINING_FSM_ATTEMPTS_MAX": "3",
    "TRAINING_FSM_BACKOFF_FIRST_S": "0.2",
    "TRAINING_FSM_BACKOFF_MAX_S": "0.5",
    "TRAINING_FSM_REFILL": "backfill",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # so that it is we who try again
}
HYPERPARAMETERS = {"n_steps": 128, "batch_size": 64, "n_epochs": 5}
SMALL = {
    "seed": 7,
    "total_timesteps": 2_048,
    "n_envs": 2,
    "net_arch": [16],
    "checkpoint_every_timesteps": 512,
    "hyperparameters": HYPERPARAMETERS,
}


@dataclass
class Ward:
    """The only worker there is, an impatient one, with its services behind proxies."""

    family: Family
    worker: ManagedProcess
    postgres: TcpProxy
    mlflow: HttpProxy

    def child(self) -> int:
        """Its training child, once there is one."""
        found: list[int] = []

        def there() -> bool:
            try:
                found.append(training_child(self.worker.pid))
            except ValueError:
                return False
            return True

        wait_until(there, self.worker, 60, "its child")
        return found[0]

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Wait for something that the log does not tell."""
        wait_until(condition, self.worker, timeout_s, what)

    def types(self, run_id: str) -> list[str]:
        """The types of the run's events, in order."""
        return [logged.type for logged in self.family.history(run_id)]

    def events(self, run_id: str, kind: type[E]) -> list[E]:
        """The run's events of a kind."""
        return [event for logged in self.family.history(run_id) if isinstance(event := logged.event, kind)]

    def wait_for(self, run_id: str, kind: type[E], number: int = 1) -> list[E]:
        """The run's events of a kind, once there are so many."""
        self.family.wait(run_id, lambda _: len(self.events(run_id, kind)) >= number)
        return self.events(run_id, kind)

    def failed(self, run_id: str, kind: str) -> Run:
        """The run once it has failed for such a reason, which `run show` must print."""
        run = self.family.wait(run_id, lambda run: run.ended)
        assert run.state is State.FAILED
        assert run.failure is not None
        assert run.failure.kind == kind, run.failure
        shown = self.told("show", run_id)
        assert f"{kind}: {run.failure.words}" in shown
        assert _one_line(run.failure.detail or "") in shown
        return run

    def told(self, command: str, run_id: str) -> str:
        """What `training-fsm run show|history` prints, in one line."""
        words = ["run", command, run_id, "--home", str(self.family.settings.home)]
        result = CliRunner(env={"COLUMNS": "2000", "NO_COLOR": "1"}).invoke(app, words)
        assert result.exit_code == 0, result.output
        return _one_line(result.output)

    @contextmanager
    def limited(self, limit: int, more: int) -> Iterator[None]:
        """Kernel's limits for the idle child and for each later one: `more` than they have of it now."""
        child = self.child()
        server = int(Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2].split()[1])
        _, hard = resource.prlimit(server, limit)
        for pid in (child, server):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) if limit == resource.RLIMIT_AS else 0
            resource.prlimit(pid, limit, (pages * resource.getpagesize() + more, hard))
        try:
            yield
        finally:
            resource.prlimit(server, limit, (hard, hard))


def _one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def ward(family: Family, mlflow_server: MlflowServer) -> Iterator[Ward]:
    """Other workers are gone before, this one afterwards; Feast has the features of `REQUEST`."""
    for worker in family.workers:
        family.kill(worker)
    url = sa.make_url(family.settings.database_url)
    assert url.port is not None
    with TcpProxy(url.port) as postgres, HttpProxy(mlflow_server.port) as mlflow:
        places = {
            "TRAINING_FSM_DATABASE_URL": url.set(port=postgres.port).render_as_string(hide_password=False),
            "TRAINING_FSM_MLFLOW_TRACKING_URI": mlflow.url,
        }
        family.request("features-only")
        family.wait("features-only", lambda run: run.features_ready is not None)
        family.send(CancelRun(run_id="features-only"))
        family.wait("features-only", lambda run: run.ended)
        worker = family.start_worker(**POLICY, **places)
        try:
            wait_until(lambda: "ready for a run" in worker.log.read_text(), worker, 90, "the worker")
            yield Ward(family, worker, postgres, mlflow)
        finally:
            family.kill(worker)


def test_a_training_that_diverges_fails_at_once(ward: Ward) -> None:
    """No other try would help: the step is named, on the card and to whoever listens for errors."""
    rate = {"hyperparameters": HYPERPARAMETERS | {"learning_rate": 1e30}}
    ward.family.request("diverging", model="diverging-ppo", agent=SMALL | rate)
    run = ward.failed("diverging", "training_error")
    assert run.failure is not None
    assert run.failure.words.startswith("training diverged at step 256: ")
    assert not ward.events("diverging", e.AttemptFailed)

    topic = Topics.with_prefix(ward.family.settings.topic_prefix).error
    ((ce_id, message),) = _published(ward.family, topic, "diverging", 1)
    assert ce_id == f"run-diverging/{run.version}"
    assert (message["type"], message["to_state"]) == ("run_failed", "FAILED")
    assert message["data"]["reason"]["words"] == run.failure.words


def test_a_child_that_hangs_or_crashes_is_replaced(ward: Ward) -> None:
    """Each is an attempt that failed and says how and where; the next child resumes from the last checkpoint."""
    family, run_id = ward.family, "deaths"
    family.request(run_id, model="deaths-ppo", agent=SMALL | {"total_timesteps": 4_096})
    ward.wait_for(run_id, e.CheckpointSaved)
    never_read = family.settings.spool / run_id / "segment-1" / "checkpoint-000000003072.zip.tmp"
    os.mkfifo(never_read)  # who writes it waits for a reader
    (hung,) = ward.wait_for(run_id, e.AttemptFailed)
    assert "worker_crashed: the training process said nothing for 4 s" in ward.told("show", run_id)
    ward.wait_for(run_id, e.TrainingResumed)
    os.kill(ward.child(), signal.SIGSEGV)
    _, crashed = ward.wait_for(run_id, e.AttemptFailed, 2)
    assert crashed.reason.detail is not None
    assert _one_line(crashed.reason.detail) in ward.told("show", run_id)
    family.registered(run_id)

    assert hung.reason.words == "the training process said nothing for 4 s"
    assert hung.reason.detail is not None
    assert "in _write_durably" in hung.reason.detail, "it says where it hangs"
    assert crashed.reason.words == "the training process was killed by SIGSEGV"
    assert crashed.reason.detail.startswith("Fatal Python error: Segmentation fault\n")
    assert "in serve" in crashed.reason.detail
    history = ward.told("history", run_id)
    assert f"failure 1, again at {hung.retry_at:%Y-%m-%d %H:%M:%S}Z: worker_crashed: {hung.reason.words}" in history
    assert f"worker_crashed: {crashed.reason.words}" in history
    assert ward.events(run_id, e.TrainingResumed)[0].step == 2_560
    _assert_whole(ward, run_id)


def test_a_training_that_wants_more_memory_than_there_is_says_so(ward: Ward) -> None:
    """Another hour may have more of it: tried again by policy, then the run fails, and the worker lives."""
    wide = {"net_arch": [8_192] * 3, "hyperparameters": HYPERPARAMETERS | {"ortho_init": False}}
    with ward.limited(resource.RLIMIT_AS, 400_000_000):
        ward.family.request("memory", model="memory-ppo", agent=SMALL | wide)
        run = ward.failed("memory", "training_error")
    assert run.failure is not None
    assert run.failure.words.startswith("the training process ran out of memory: ")
    assert "268435456 bytes" in run.failure.words
    _assert_tried(ward, "memory", run)


def test_a_full_disk_costs_an_evaluation_only_time(ward: Ward) -> None:
    """Every attempt is an event; once there is room a retry evaluates, and registers what was trained before."""
    family, run_id = ward.family, "full-disk"
    with ward.limited(resource.RLIMIT_FSIZE, 100_000):  # checkpoints are smaller, the report's plot is larger
        family.request(run_id, model="full-ppo", agent=SMALL | {"total_timesteps": 512})
        run = ward.failed(run_id, "evaluation_error")
    assert run.failed_from is State.EVALUATING
    assert run.failure is not None
    assert run.failure.words.startswith("the worker's disk is full, or allows no file of this size: ")
    assert "File too large" in run.failure.words
    assert run.failure.detail is not None
    assert "in write_report" in run.failure.detail
    _assert_tried(ward, run_id, run)

    family.send(RetryRun(run_id=run_id, actor="somebody", why="there is room again"))
    family.wait(run_id, lambda run: run.failed_from is None)
    family.registered(run_id)
    kinds = Counter(ward.types(run_id))
    assert (kinds["training_started"], kinds["training_finished"], kinds["training_resumed"]) == (1, 1, 0)
    _assert_whole(ward, run_id)


def test_an_mlflow_that_is_away_delays_checkpoints_and_nothing_else(ward: Ward) -> None:
    """Away, and full, for less than the patience: no attempt fails. For longer: one does, and the run goes on."""
    family, run_id = ward.family, "outages"
    family.request(run_id, model="outages-ppo", agent=SMALL | {"total_timesteps": 8_192})
    ward.wait_for(run_id, e.CheckpointSaved)
    with ward.mlflow.away():
        ward.until(lambda: ward.mlflow.faults >= 1, "a try while MLflow is away")
    saved = len(ward.wait_for(run_id, e.CheckpointSaved, len(ward.events(run_id, e.CheckpointSaved)) + 1))
    with ward.mlflow.refusing("PUT", 507):
        faults = ward.mlflow.faults
        ward.until(lambda: ward.mlflow.faults > faults, "a try while the store is full")
    ward.wait_for(run_id, e.CheckpointSaved, saved + 1)
    assert not ward.events(run_id, e.AttemptFailed)
    assert len(ward.events(run_id, e.RunClaimed)) == 1

    with ward.mlflow.away():
        (gave_up,) = ward.wait_for(run_id, e.AttemptFailed)
        assert "outside_unavailable: mlflow: " in ward.told("show", run_id)
    family.registered(run_id)
    assert (gave_up.reason.kind, gave_up.reason.service) == ("outside_unavailable", "mlflow")
    assert ward.events(run_id, e.CheckpointSaved)[-1].step == 8_192
    assert len(ward.events(run_id, e.AttemptFailed)) == 1
    _assert_whole(ward, run_id)


def test_curves_that_cannot_be_logged_are_told_to_who_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training whose last points are missing has not finished: the next attempt sends them from its checkpoint."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = MlflowConnection(f"http://127.0.0.1:{free_port()}")
    news: queue.SimpleQueue[object] = queue.SimpleQueue()
    point = CurvePoint(name="train/loss", value=0.5, step=256, timestamp_ms=1)
    with Uploads(MlflowArtifacts(nobody), MlflowTracking(nobody), "tracking-1", news, patience_s=0) as uploads:
        uploads.tell_when_done()
        assert news.get(timeout=60) == UploadsDone()
        uploads.metrics([point])
        uploads.tell_when_done()
        failed = news.get(timeout=60)
        assert isinstance(failed, SideWorkFailed)
        assert isinstance(failed.error, OutsideUnavailable)
        assert "log 1 metric points" in failed.error.words
        assert news.get(timeout=60) == UploadsDone()


def test_a_postgres_that_is_away_loses_and_doubles_nothing(ward: Ward) -> None:
    """Silent or cut for less than the patience costs no claim; for longer, between MLflow's version and our event."""
    family, run_id = ward.family, "postgres-away"
    family.request(run_id, model="postgres-ppo", agent=SMALL | {"total_timesteps": 4_096})
    ward.wait_for(run_id, e.CheckpointSaved)
    with ward.postgres.silent():
        ward.until(lambda: ward.postgres.faults >= 1, "words to a silent Postgres")
        time.sleep(1)
    with ward.postgres.away():
        faults = ward.postgres.faults
        ward.until(lambda: ward.postgres.faults >= faults + 2, "connections while Postgres is away")
    family.wait(run_id, lambda run: run.registration_key is not None)
    assert len(ward.events(run_id, e.RunClaimed)) == 1
    with ward.postgres.away():
        ward.until(lambda: "nothing recorded" in ward.worker.log.read_text(), "the end of its patience")
    run = family.registered(run_id)

    kinds = Counter(ward.types(run_id))
    once = ("training_started", "training_finished", "evaluation_finished", "registration_intended", "model_registered")
    assert [kinds[kind] for kind in once] == [1] * len(once)
    assert (kinds["run_claimed"], kinds["attempt_failed"], kinds["training_resumed"]) == (2, 0, 0)
    assert run.registered is not None
    versions = MlflowClient(family.settings.mlflow_tracking_uri).search_model_versions("name='postgres-ppo'")
    assert [int(version.version) for version in versions] == [run.registered.version] == [1]
    _assert_whole(ward, run_id)


def test_a_broker_that_is_away_for_a_while_delays_what_goes_in_and_out(ward: Ward, broker: Broker) -> None:
    """Workers do without it; a command that was sent meanwhile arrives, events follow, each under its own id."""
    family = ward.family
    family.request("brokerless", model="brokerless-ppo", agent=SMALL)
    family.wait("brokerless", lambda run: run.started)
    rate = {"hyperparameters": HYPERPARAMETERS | {"learning_rate": 1e30}}
    sender = threading.Thread(target=family.request, args=("meanwhile",), kwargs={"agent": SMALL | rate})
    os.killpg(broker.process.pid, signal.SIGSTOP)
    try:
        sender.start()
        run = family.registered("brokerless")
        assert family.log.load("meanwhile") is None
    finally:
        os.killpg(broker.process.pid, signal.SIGCONT)
    sender.join()
    assert family.wait("meanwhile", lambda run: run.ended).state is State.FAILED
    for run_id in ("brokerless", "meanwhile"):
        version = family.wait(run_id, lambda _: True).version
        found = _published(family, Topics.with_prefix(family.settings.topic_prefix).events, run_id, version)
        ids = list(dict.fromkeys(ce_id for ce_id, _ in found))
        assert ids == [f"run-{run_id}/{number}" for number in range(1, version + 1)]
    assert ward.types("meanwhile").count("run_requested") == 1
    assert run.registered is not None
    assert not ward.events("brokerless", e.AttemptFailed)


def test_features_that_nobody_reports_are_looked_for_at_the_deadline(ward: Ward, topic_prefix: str) -> None:
    """Those that are in Feast are trained on; where they are not, the run fails and says what Feast lacks."""
    family = ward.family
    settings = family.settings.model_copy(update={"topic_prefix": topic_prefix})
    unusual = {"name": "rsi", "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 5}]}
    other = {"semver": "1.0.0", "feature_definitions": [{"name": "close_price"}, unusual]}
    environment = {"TRAINING_FSM_TOPIC_PREFIX": topic_prefix, "TRAINING_FSM_FEATURES_DEADLINE_S": "2"}
    with _orchestrator(family, "hasty", environment):
        os.kill(family.preprocess.pid, signal.SIGSTOP)
        try:
            for run_id, changes in (("unsaid", {}), ("uncomputed", {"features": other})):
                request = read_request(json.dumps(REQUEST | {"agent": SMALL | {"total_timesteps": 512}} | changes))
                send_command(settings, RequestTraining(run_id=run_id, request=request))
            (ready,) = ward.wait_for("unsaid", e.FeaturesReady)
            failed = ward.failed("uncomputed", "deadline")
        finally:
            os.kill(family.preprocess.pid, signal.SIGCONT)
    assert ready.request_id == e.FOUND_IN_FEAST
    family.registered("unsaid")
    assert ward.types("unsaid")[1:6] == [
        "features_requested",
        "feature_request_answered",
        "deadline_passed",
        "run_claimed",
        "features_ready",
    ]
    assert failed.failure is not None
    assert failed.failure.service == "preprocess"
    assert failed.failed_from is State.AWAITING_FEATURES
    _, config = failed.plan
    assert failed.failure.detail is not None
    service = f"observation_space_EURUSD_4h_1.0.0_{config.hash}"
    assert failed.failure.detail.startswith(f"{service} lacks 2017-01-01T00:00:00")
    ward.wait_for("uncomputed", e.FeaturesReady)
    assert ward.types("uncomputed")[-2:] == ["run_failed", "features_ready"], "too late, and kept for a retry"


def test_another_orchestrator_takes_over_from_one_that_was_killed(
    family: Family, migrated_database_url: str, topic_prefix: str
) -> None:
    """It hears the completion that the first one waited for, and goes on publishing where that one stopped."""
    environment = {"TRAINING_FSM_TOPIC_PREFIX": topic_prefix, "TRAINING_FSM_DATABASE_URL": migrated_database_url}
    settings = family.settings.model_copy(update={"topic_prefix": topic_prefix})
    engine = make_engine(migrated_database_url, application_name="tests")
    os.kill(family.preprocess.pid, signal.SIGSTOP)
    try:
        with _orchestrator(family, "first", environment) as first:
            send_command(settings, RequestTraining(run_id="orphaned", request=read_request(json.dumps(REQUEST))))
            wait_until(lambda: _state(engine, "orphaned", 3) is State.AWAITING_FEATURES, first, 60, "the question")
            os.kill(first.pid, signal.SIGKILL)
        with _orchestrator(family, "second", environment) as taking_over:
            os.kill(family.preprocess.pid, signal.SIGCONT)
            wait_until(lambda: _state(engine, "orphaned", 4) is State.TRAINING, taking_over, 60, "the completion")
            published = _published(family, Topics.with_prefix(topic_prefix).events, "orphaned", 4)
    finally:
        os.kill(family.preprocess.pid, signal.SIGCONT)
        engine.dispose()
    assert [message["type"] for _, message in published] == [
        "run_requested",
        "features_requested",
        "feature_request_answered",
        "features_ready",
    ]


def test_features_that_lack_after_all_are_asked_for_once_more(ward: Ward) -> None:
    """With `refill`, as a backfill; what still lacks then fails the run and is named."""
    ward.family.request("refilled", model="refilled-ppo", symbol="GBPJPY")
    run = ward.failed("refilled", "features_missing")
    kinds = [kind for kind in ward.types("refilled") if kind != "feature_request_answered"]
    assert kinds == [
        "run_requested",
        "features_requested",
        "features_ready",
        "run_claimed",
        "features_incomplete",
        "features_requested",
        "features_ready",
        "run_claimed",
        "run_failed",
    ]
    first, second = ward.events("refilled", e.FeaturesRequested)
    assert (first.context, second.context) == ("training", "backfill")
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.request_id != second.request_id
    (incomplete,) = ward.events("refilled", e.FeaturesIncomplete)
    assert run.failure is not None
    assert run.failure.service is not None
    assert run.failure.service == incomplete.service
    assert run.failure.service.startswith("observation_space_GBPJPY_4h_1.0.0_")


def _state(engine: sa.Engine, run_id: str, version: int) -> State | None:
    """Where a run stands once its history has reached a length."""
    run = PostgresEventLog(engine).load(run_id)
    return run.state if run is not None and run.version >= version else None


@contextmanager
def _orchestrator(family: Family, name: str, environment: dict[str, str]) -> Iterator[ManagedProcess]:
    """An orchestrator of the test's own."""
    command = [sys.executable, "-m", "training_fsm", "orchestrator", "--home", str(family.settings.home)]
    log = family.logs / f"orchestrator-{name}.log"
    with start_process(name, command, log=log, env=os.environ | environment) as process:
        wait_until(lambda: "orchestrator serves" in log.read_text(), process, 60, "the orchestrator")
        yield process


def _published(family: Family, topic: str, run_id: str, expected: int) -> list[tuple[str, dict[str, object]]]:
    """(event id, message) of what was published about a run; waits until so many ids are there."""
    consumer = Consumer({"bootstrap.servers": family.settings.bootstrap_servers, "group.id": str(uuid.uuid4())})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(6)])
    found: list[tuple[str, dict[str, object]]] = []
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < (30 if len(found) < expected else 0.5):
        message = consumer.poll(0.2)
        if message is None or message.error() or message.key() != run_id.encode():
            continue
        found.append((dict(message.headers())["ce_id"].decode(), json.loads(message.value())))
        quiet_since = time.monotonic()
    consumer.close()
    return found


def _assert_tried(ward: Ward, run_id: str, run: Run) -> None:
    """Two attempts were made again, the third is the end; each says the same."""
    attempts = ward.events(run_id, e.AttemptFailed)
    assert [failed.attempt for failed in attempts] == [1, 2]
    assert all(run.failure is not None and failed.reason.kind == run.failure.kind for failed in attempts)
    assert ward.types(run_id)[-1] == "run_failed"


def _assert_whole(ward: Ward, run_id: str) -> None:
    """The log verifies with every file; no checkpoint is named twice, no point of a curve is lost or doubled."""

    def stored() -> MlflowArtifacts:
        return MlflowArtifacts(MlflowConnection(ward.family.settings.mlflow_tracking_uri))

    report = verify(PostgresAuditLog(ward.family.engine), run_id, stored)
    assert report.ok, report
    steps = [saved.step for saved in ward.events(run_id, e.CheckpointSaved)]
    assert steps == sorted(set(steps))
    run = ward.family.log.load(run_id)
    assert run is not None
    assert run.tracking_run_id is not None
    agent = run.plan.request.agent
    assert steps[-1] == agent.whole_timesteps
    points = MlflowClient(ward.family.settings.mlflow_tracking_uri).get_metric_history(
        run.tracking_run_id, "train/loss"
    )
    counted = Counter(point.step for point in points)
    assert (len(counted), max(counted.values())) == (agent.whole_timesteps // agent.rollout_timesteps, 1)
