"""From a request on Kafka to a registered model, all parts real; every claim is read from the log."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from mlflow import MlflowClient

from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.domain import events as e
from training_fsm.domain.commands import CancelRun
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.process import wait_until
from training_fsm.messaging.topics import Topics
from training_fsm.service.audit_service import verify
from training_fsm.store.audit_reads import PostgresAuditLog

from .conftest import Family, training_child

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:pydantic")


def _types(family: Family, run_id: str) -> list[str]:
    return [logged.type for logged in family.history(run_id)]


def _published(family: Family, topic: str, run_id: str, expected: int) -> list[tuple[str, str]]:
    """(event id, type) of what a consumer that reads committed finds about a run; waits until that many are there."""
    consumer = Consumer({"bootstrap.servers": family.settings.bootstrap_servers, "group.id": str(uuid.uuid4())})
    partitions = range(family.settings.topic_partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    found: list[tuple[str, str]] = []
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < (30 if len(found) < expected else 1):
        message = consumer.poll(0.2)
        if message is None or message.error() or message.key() != run_id.encode():
            continue
        headers = {name: value.decode() for name, value in message.headers()}
        found.append((headers["ce_id"], headers["ce_type"]))
        quiet_since = time.monotonic()
    consumer.close()
    return found


def _assert_as_written(family: Family, run_id: str, *, with_files: bool = False) -> None:
    """The log verifies; `with_files` fetches every file that it names."""

    def stored() -> MlflowArtifacts:
        return MlflowArtifacts(MlflowConnection(family.settings.mlflow_tracking_uri))

    report = verify(PostgresAuditLog(family.engine), run_id, stored if with_files else None)
    assert report.ok, report


def _assert_no_metric_twice(family: Family, run: Run) -> None:
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    assert run.tracking_run_id is not None
    agent = run.plan.request.agent
    updates = agent.whole_timesteps // agent.rollout_timesteps
    expected = {"train/loss": updates, "validation/total_return_fraction": 1, "test/sharpe": 1}
    for name, points in expected.items():
        steps = Counter(point.step for point in client.get_metric_history(run.tracking_run_id, name))
        assert (len(steps), max(steps.values())) == (points, 1), f"{name}: none lost, none twice: {steps}"


def test_from_request_to_registered_model(family: Family) -> None:
    """A request on Kafka becomes a version in MLflow that predicts without us, its history is gapless and verifies."""
    family.ensure_workers(1)
    family.request("straight")
    run = family.wait("straight", lambda run: run.ended)
    assert run.state is State.REGISTERED, run.failure

    history = family.history("straight")
    assert [logged.version for logged in history] == list(range(1, len(history) + 1))
    milestones = [logged.type for logged in history if logged.type != e.CheckpointSaved.type()]
    assert [name for name in milestones if name != "feature_request_answered"] == [
        "run_requested",
        "features_requested",
        "features_ready",
        "run_claimed",
        "data_frozen",
        "training_started",
        "training_finished",
        "evaluation_finished",
        "registration_intended",
        "model_registered",
    ]
    assert run.data is not None
    assert run.data.observation_columns, "the agent sees the indicators"
    assert "close_price_value" not in run.data.observation_columns, "and never a price"
    _assert_as_written(family, "straight", with_files=True)
    _assert_no_metric_twice(family, run)

    assert run.registered is not None
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    version = client.get_model_version("eurusd-ppo", str(run.registered.version))
    assert version.tags["training_fsm.run_id"] == "straight"
    assert version.tags["training_fsm.data_digest"] == run.data.digest
    assert version.tags["training_fsm.feature_config_hash"] == run.plan.feature_config.hash

    topics = Topics.with_prefix(family.settings.topic_prefix)
    published = list(dict.fromkeys(_published(family, topics.events, "straight", len(history))))
    assert published == [(f"run-straight/{logged.version}", logged.type) for logged in history]
    assert {kind for _, kind in _published(family, topics.completed, "straight", 1)} == {"model_registered"}


def test_registered_model_predicts_in_a_process_without_us(family: Family, tmp_path: Path) -> None:
    """The alias `candidate` loads with plain mlflow.pyfunc where training_fsm cannot be imported, and decides."""
    family.ensure_workers(1)
    family.request("alone", model="alone-ppo")
    family.wait("alone", lambda run: run.state is State.REGISTERED)
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    deadline = time.monotonic() + 20
    while client.get_registered_model("alone-ppo").aliases.get("candidate") is None and time.monotonic() < deadline:
        time.sleep(0.1)
    script = """
import sys
sys.modules["training_fsm"] = sys.modules["torch"] = sys.modules["stable_baselines3"] = None
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/alone-ppo@candidate")
print(model.predict(model.input_example).to_json())
"""
    answer = subprocess.run(
        [sys.executable, "-c", script, family.settings.mlflow_tracking_uri],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    decided = json.loads(answer.stdout.splitlines()[-1])
    assert decided["target_position"]["0"] in (-1.0, 0.0, 1.0)


def test_killed_workers_end_with_the_same_bytes(family: Family) -> None:
    """A run whose workers are killed three times, with SIGKILL, ends with the bytes of one that nobody disturbed."""
    family.ensure_workers(2)
    family.request("calm", model="bytes-ppo")
    family.request("stormy", model="bytes-ppo")
    for checkpoints in (1, 6, 12):
        run = family.wait(
            "stormy",
            lambda run, n=checkpoints: (
                run.state is State.TRAINING
                and run.worker is not None
                and sum(kind == "checkpoint_saved" for kind in _types(family, "stormy")) >= n
            ),
        )
        family.kill(family.worker_of(run))
        family.ensure_workers(2)
    calm = family.wait("calm", lambda run: run.ended)
    stormy = family.wait("stormy", lambda run: run.ended)
    assert (calm.state, stormy.state) == (State.REGISTERED, State.REGISTERED), (calm.failure, stormy.failure)

    last = [
        next(x for x in reversed(family.history(run_id)) if x.type == "training_finished")
        for run_id in ("calm", "stormy")
    ]
    finals = [logged.event for logged in last]
    assert isinstance(finals[0], e.TrainingFinished)
    assert finals[0] == finals[1], "the last checkpoint has the same bytes, optimizer and generators included"
    assert calm.evaluation is not None
    assert stormy.evaluation is not None
    assert calm.evaluation.metrics == stormy.evaluation.metrics

    history = family.history("stormy")
    events = [logged.event for logged in history]
    tokens = [event.token for event in events if isinstance(event, e.RunClaimed)]
    assert tokens == list(range(1, len(tokens) + 1))
    assert len(tokens) >= 4, "three kills, four claims"
    for index, event in enumerate(events):
        if isinstance(event, e.TrainingResumed):
            saved = [x for x in events[:index] if isinstance(x, e.CheckpointSaved)]
            assert event.step == (saved[-1].step if saved else 0), "it went on from the last checkpoint that was stored"
            assert event.fidelity == "exact"
    kinds = Counter(logged.type for logged in history)
    assert kinds["training_started"] == kinds["data_frozen"] == kinds["model_registered"] == 1
    steps = [event.step for event in events if isinstance(event, e.CheckpointSaved)]
    assert len(steps) == len(set(steps)), "no checkpoint is named twice"
    _assert_as_written(family, "stormy", with_files=True)
    _assert_no_metric_twice(family, stormy)


def test_worker_killed_while_registering_makes_one_version(family: Family) -> None:
    """A kill between the intent to register and its event leaves one version in MLflow, not two."""
    family.ensure_workers(2)
    family.request("twice", model="twice-ppo")
    run = family.wait("twice", lambda run: run.registration_key is not None)
    family.kill(family.worker_of(run))
    run = family.wait("twice", lambda run: run.ended)
    assert run.state is State.REGISTERED, run.failure
    assert run.registered is not None
    versions = MlflowClient(family.settings.mlflow_tracking_uri).search_model_versions("name='twice-ppo'")
    assert [int(version.version) for version in versions] == [run.registered.version] == [1]
    assert _types(family, "twice").count("evaluation_finished") == 1, "a crash after it does not evaluate again"
    _assert_as_written(family, "twice")


def test_worker_that_slept_through_its_lease_is_fenced_out(family: Family) -> None:
    """A worker that stops for longer than its lease and wakes up again appends nothing more: another has the run."""
    family.ensure_workers(2)
    family.request("fenced", model="fenced-ppo")
    sleeper = family.worker_of(family.wait("fenced", lambda run: bool(run.checkpoints)))
    os.kill(sleeper.pid, signal.SIGSTOP)
    family.wait("fenced", lambda run: run.token == 2)
    os.kill(sleeper.pid, signal.SIGCONT)
    run = family.wait("fenced", lambda run: run.ended)
    assert run.state is State.REGISTERED, run.failure
    taken_over = False
    for logged in family.history("fenced"):
        taken_over = taken_over or (logged.type == "run_claimed" and not logged.actor.startswith(sleeper.name))
        assert not (taken_over and logged.actor.startswith(sleeper.name)), f"version {logged.version} came too late"
    _assert_as_written(family, "fenced")
    _assert_no_metric_twice(family, run)


LONG = {"total_timesteps": 50_000_000, "n_envs": 2, "net_arch": [16], "hyperparameters": {"n_steps": 128}}
"""Longer than any test waits."""


def test_worker_told_to_stop_while_it_freezes_begins_no_training(family: Family) -> None:
    """SIGTERM while the child reads features ends the worker with 0; the run is free for the next one."""
    for other in family.workers:
        family.kill(other)
    worker = family.start_worker()
    wait_until(lambda: "ready for a run" in worker.log.read_text(), worker, 90, "the worker")
    child = training_child(worker.pid)
    os.kill(child, signal.SIGSTOP)  # it reads nothing until the worker has been told
    family.request("unfrozen", model="unfrozen-ppo", agent=LONG)
    family.wait("unfrozen", lambda run: run.state is State.TRAINING and run.worker is not None)
    time.sleep(1)  # by now the worker waits for what it has ordered
    worker.popen.terminate()
    os.kill(child, signal.SIGCONT)
    assert worker.popen.wait(60) == 0, worker.last_lines()
    run = family.wait("unfrozen", lambda _: True)
    assert (run.state, run.started, run.checkpoints) == (State.TRAINING, False, ())
    family.ensure_workers(2)
    family.wait("unfrozen", lambda run: run.token == 2 and run.started)
    family.send(CancelRun(run_id="unfrozen", actor="somebody", why="a test"))
    family.wait("unfrozen", lambda run: run.ended)
    _assert_as_written(family, "unfrozen")


def test_worker_told_to_stop_while_it_trains_leaves_a_checkpoint(family: Family) -> None:
    """SIGTERM ends it with 0 after a checkpoint that was not due; another worker goes on from there."""
    family.ensure_workers(2)
    family.request("told-to-stop", model="told-to-stop-ppo", agent=LONG | {"checkpoint_every_timesteps": 25_000_000})
    run = family.wait("told-to-stop", lambda run: run.started)
    assert not run.checkpoints
    worker = family.worker_of(run)
    worker.popen.terminate()
    assert worker.popen.wait(60) == 0, worker.last_lines()
    family.wait("told-to-stop", lambda _: "training_resumed" in _types(family, "told-to-stop"))
    events = [logged.event for logged in family.history("told-to-stop")]
    saved, resumed = (
        next(event for event in events if isinstance(event, kind)) for kind in (e.CheckpointSaved, e.TrainingResumed)
    )
    assert events.index(saved) < events.index(resumed)
    assert (resumed.step, resumed.checkpoint, resumed.fidelity) == (saved.step, saved.sha256, "exact")
    family.send(CancelRun(run_id="told-to-stop", actor="somebody", why="a test"))
    family.wait("told-to-stop", lambda run: run.ended)
    _assert_as_written(family, "told-to-stop")


def test_cut_connections_to_postgres_cost_no_training(family: Family) -> None:
    """Appends that lose their connection are made once all the same: one claim, no failed attempt, no event twice."""
    family.ensure_workers(1)
    family.request("cut", model="cut-ppo")
    family.wait("cut", lambda run: run.started)
    cut = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'training-fsm-worker'"
    )
    cuts = 0
    while not (run := family.wait("cut", lambda _: True)).ended and cuts < 60:
        with family.engine.connect() as connection:
            cuts += connection.execute(cut).scalar_one()
        time.sleep(0.05)
    run = family.wait("cut", lambda run: run.ended)
    assert run.state is State.REGISTERED, run.failure
    kinds = Counter(_types(family, "cut"))
    assert cuts > 5, "the cuts hit something"
    assert (kinds["run_claimed"], kinds["attempt_failed"], kinds["training_finished"]) == (1, 0, 1)
    steps = [x.step for logged in family.history("cut") if isinstance(x := logged.event, e.CheckpointSaved)]
    assert steps == sorted(set(steps)), "no checkpoint is named twice"
    _assert_no_metric_twice(family, run)


def test_cancelled_run_stops_its_training(family: Family) -> None:
    """A cancel in the middle of training ends the run and the child's work; the worker goes on to the next run."""
    family.ensure_workers(1)
    agent = {"total_timesteps": 2_000_000, "n_envs": 2, "net_arch": [16], "hyperparameters": {"n_steps": 256}}
    family.request("cancelled", model="cancelled-ppo", agent=agent)
    family.wait("cancelled", lambda run: run.started)
    family.send(CancelRun(run_id="cancelled", actor="somebody", why="a test"))
    run = family.wait("cancelled", lambda run: run.ended)
    assert run.state is State.CANCELLED
    family.request("next", model="cancelled-ppo")
    assert family.wait("next", lambda run: run.ended).state is State.REGISTERED
    assert _types(family, "cancelled")[-1] == "run_cancelled"
    assert run.tracking_run_id is not None
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    assert client.get_run(run.tracking_run_id).info.status == "KILLED"


def test_gate_that_is_not_passed_rejects_the_model(family: Family) -> None:
    """A model below the request's bound ends REJECTED, named by the rule, and nothing is registered."""
    family.ensure_workers(1)
    family.request("weak", model="weak-ppo", evaluation={"gate": [{"metric": "sharpe", "min": 99.0}]})
    run = family.wait("weak", lambda run: run.ended)
    assert run.state is State.REJECTED
    rejected = family.history("weak")[-1].event
    assert rejected == e.ModelRejected(failed=("sharpe",))
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    assert not client.search_model_versions("name='weak-ppo'")


def test_completion_without_features_fails_the_run_and_says_what_lacks(family: Family) -> None:
    """Preprocess completes a symbol without market data; the run fails and names the service that is not there."""
    family.ensure_workers(1)
    family.request("empty", symbol="GBPJPY")
    run = family.wait("empty", lambda run: run.ended)
    assert run.state is State.FAILED
    assert run.failure is not None
    assert run.failure.kind == "features_missing"
    assert run.failure.service is not None
    assert run.failure.service.startswith("observation_space_GBPJPY_4h_1.0.0_")


def test_price_column_that_is_not_there_is_named(family: Family) -> None:
    """A request that maps a price to a field which Feast lacks fails and names service and field."""
    family.ensure_workers(1)
    family.request("priceless", data={"columns": {"close": "close_price_typo"}})
    run = family.wait("priceless", lambda run: run.ended)
    assert run.state is State.FAILED
    assert run.failure is not None
    assert (run.failure.kind, run.failure.field) == ("features_missing", "close_price_typo")


def test_killed_training_child_is_an_attempt_that_failed(family: Family) -> None:
    """A child that dies of a signal is reported with it, tried again from the checkpoint, and the run completes."""
    family.ensure_workers(1)
    family.request("childless", model="childless-ppo")
    worker = family.worker_of(family.wait("childless", lambda run: bool(run.checkpoints)))
    os.kill(training_child(worker.pid), signal.SIGKILL)
    run = family.wait("childless", lambda run: run.ended)
    assert run.state is State.REGISTERED, run.failure
    failed = [x for logged in family.history("childless") if isinstance(x := logged.event, e.AttemptFailed)]
    assert [(x.reason.kind, x.attempt) for x in failed] == [("worker_crashed", 1)]
    assert "SIGKILL" in failed[0].reason.words
    _assert_no_metric_twice(family, run)
