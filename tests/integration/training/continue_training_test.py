"""From a registered model to its child, all parts real; every claim is read from the log, MLflow and Feast."""

import json
import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from feast import FeatureStore
from mlflow import MlflowClient
from stable_baselines3 import PPO

from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.digest import file_digest
from training_fsm.client.feature_service import OBSERVATION, service_name
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.domain import events as e
from training_fsm.domain.facts import ModelRef
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.service.audit_service import verify
from training_fsm.store.audit_reads import PostgresAuditLog

from .conftest import REQUEST, Family

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:pydantic")

E = TypeVar("E", bound=e.Event)
HALF, WHOLE = 4_096, 8_192
STEEP = {"schedule": "linear", "start": 1e-3, "end": 1e-5, "horizon_timesteps": WHOLE}


def _agent(steps: int, **changes: object) -> dict[str, object]:
    agent = REQUEST["agent"]
    assert isinstance(agent, dict)
    hyperparameters = agent["hyperparameters"] | {"learning_rate": STEEP}
    return agent | {"total_timesteps": steps, "hyperparameters": hyperparameters} | changes


def _features(length: int) -> dict[str, object]:
    """A feature configuration of its own: what one test does to its rows is no other's business."""
    rsi = {"name": "rsi", "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": length}]}
    return {"semver": "1.0.0", "feature_definitions": [{"name": "close_price"}, rsi]}


def _events(family: Family, run_id: str, kind: type[E]) -> list[E]:
    return [event for logged in family.history(run_id) if isinstance(event := logged.event, kind)]


def _assert_as_written(family: Family, run_id: str) -> None:
    def stored() -> MlflowArtifacts:
        return MlflowArtifacts(MlflowConnection(family.settings.mlflow_tracking_uri))

    report = verify(PostgresAuditLog(family.engine), run_id, stored)
    assert report.ok, report


def _last_checkpoint(family: Family, run: Run, into: Path) -> dict[str, bytes]:
    """The files of the run's last checkpoint."""
    store = MlflowArtifacts(MlflowConnection(family.settings.mlflow_tracking_uri))
    with zipfile.ZipFile(store.get(run.checkpoints[-1].artifact, into)) as files:
        return {name: files.read(name) for name in files.namelist()}


@pytest.fixture(scope="module")
def base(family: Family) -> Run:
    """A registered model of half the steps, whose schedules have twice its horizon."""
    family.ensure_workers(2)
    family.request("base", model="line-ppo", agent=_agent(HALF))
    return family.registered("base")


def test_a_half_continued_by_a_half_is_the_whole(family: Family, base: Run, tmp_path: Path) -> None:
    """Same data and no changes: the bytes of a run that never stopped, though the child's worker was killed as well.

    Ingest is not asked, the drift proof finds nothing, and log, MLflow and Postgres's view tell the descent.
    """
    family.ensure_workers(2)
    family.request("whole", model="whole-ppo", agent=_agent(WHOLE))
    family.go_on("child", "models:/line-ppo@candidate")
    training = family.wait("child", lambda run: run.state is State.TRAINING and bool(run.checkpoints))
    family.kill(family.worker_of(training))
    family.ensure_workers(2)
    whole, child = family.registered("whole"), family.registered("child")

    unbroken, continued = _last_checkpoint(family, whole, tmp_path), _last_checkpoint(family, child, tmp_path)
    for name in ("policy.safetensors", "optimizer.safetensors", "state.npz"):
        assert continued[name] == unbroken[name], name
    counters = [json.loads(files["state.json"]) for files in (unbroken, continued)]
    assert [counted.pop("request_digest") for counted in counters].count(counters[0]) == 0
    assert counters[0] == counters[1]
    assert counters[0]["num_timesteps"] == WHOLE

    kinds = [logged.type for logged in family.history("child")]
    assert "features_requested" not in kinds
    assert kinds[:5] == ["run_requested", "run_claimed", "parent_resolved", "features_ready", "data_frozen"]
    (resolved,) = _events(family, "child", e.ParentResolved)
    assert base.registered is not None
    assert resolved.parent.model == ModelRef(name="line-ppo", version=base.registered.version)
    assert resolved.changes == ()
    (started,) = _events(family, "child", e.TrainingStarted)
    assert started.step == HALF
    assert started.inheritance is not None
    assert started.inheritance.reset == ()
    assert base.data is not None
    assert child.data is not None
    assert child.data.digest == base.data.digest
    assert child.data.shared is not None
    assert (child.data.shared.rows, child.data.shared.rows_different) == (base.data.rows, 0)
    assert child.data.shared.found_digest == child.data.shared.parent_digest
    _assert_descent(family, child, resolved.parent.model)
    _assert_as_written(family, "child")


def _assert_descent(family: Family, child: Run, parent: ModelRef) -> None:
    """Parent, root and depth in the event, MLflow's tags and the view."""
    registered = child.registered
    assert registered is not None
    assert (registered.parent, registered.root, registered.depth) == (parent, parent, 1)
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    tags = client.get_model_version(registered.name, str(registered.version)).tags
    told = {name: tags[f"training_fsm.{name}"] for name in ("parent", "root", "depth", "steps")}
    assert told == {"parent": str(parent), "root": str(parent), "depth": "1", "steps": str(WHOLE)}
    with family.engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "SELECT version, parent_model, parent_version, root_version, depth, steps FROM models "
                "WHERE model = :name AND run_id IN ('base', 'child') ORDER BY version"
            ),
            {"name": registered.name},
        ).all()
    assert [tuple(row) for row in rows] == [
        (parent.version, None, None, parent.version, 0, HALF),
        (registered.version, parent.name, parent.version, parent.version, 1, WHOLE),
    ]


def test_newer_data_are_asked_of_ingest_and_the_parent_s_rows_kept(family: Family) -> None:
    """Only the range that Feast lacks is asked for; what parent and child share is the parent's, byte for byte."""
    family.ensure_workers(2)
    family.request(
        "young",
        model="newer-ppo",
        features=_features(10),
        range={"start": "2017-01-01T00:00:00Z", "end": "2017-09-01T00:00:00Z"},
        agent=_agent(HALF),
    )
    young = family.registered("young")
    assert young.registered is not None
    family.go_on("older", f"models:/newer-ppo/{young.registered.version}", range={"end": "2018-01-01T00:00:00Z"})
    older = family.registered("older")

    (lacking,) = _events(family, "older", e.FeaturesLacking)
    (asked,) = _events(family, "older", e.FeaturesRequested)
    (ready,) = _events(family, "older", e.FeaturesReady)
    assert [f"{part.start:%Y-%m} {part.end:%Y-%m-%d}" for part in lacking.ranges] == ["2017-09 2018-01-01"]
    assert asked.range == lacking.ranges[0]
    assert ready.request_id == asked.request_id
    assert older.data is not None
    assert young.data is not None
    assert older.data.shared is not None
    assert (older.data.shared.rows, older.data.shared.rows_different) == (young.data.rows, 0)
    assert older.data.rows > young.data.rows
    assert older.data.normalisation == young.data.normalisation
    (started,) = _events(family, "older", e.TrainingStarted)
    assert started.inheritance is not None
    assert [reset.part for reset in started.inheritance.reset] == ["environments"]
    claims = [claim.token for claim in _events(family, "older", e.RunClaimed)]
    assert claims == list(range(1, len(claims) + 1)), "a look-up, then the training"
    assert len(claims) >= 2
    assert not _events(family, "older", e.AttemptFailed)
    _assert_as_written(family, "older")


def test_drift_stops_the_run_and_is_accepted_only_by_the_request(family: Family) -> None:
    """A value that Feast gives otherwise than to the parent is named with bar and column; both ways are open."""
    family.ensure_workers(2)
    family.request("before", model="drift-ppo", features=_features(9), agent=_agent(HALF))
    before = family.registered("before")
    assert before.registered is not None
    column, bar = _change_a_value(family, before)

    parent = f"models:/drift-ppo/{before.registered.version}"
    family.go_on("drifted", parent)
    drifted = family.wait("drifted", lambda run: run.ended)
    assert drifted.state is State.FAILED
    assert drifted.failure is not None
    assert (drifted.failure.kind, drifted.failure.field) == ("data_drifted", column)
    assert drifted.failure.range is not None
    assert pd.Timestamp(drifted.failure.range) == bar
    assert drifted.data is None, "nothing was frozen, nothing trained"

    family.go_on("accepted", parent, accept_drift=True)
    accepted = family.registered("accepted")
    assert before.data is not None
    assert accepted.data is not None
    assert accepted.data.digest == before.data.digest, "the parent's rows are used, not the changed one"
    shared = accepted.data.shared
    assert shared is not None
    assert shared.rows_different == 1
    assert shared.first_difference is not None
    assert (shared.first_difference.column, shared.first_difference.time) == (column, bar)
    assert accepted.data.warnings


def _change_a_value(family: Family, run: Run) -> tuple[str, pd.Timestamp]:
    """Alter one value of one observation column in Feast's files, in the middle of the run's data."""
    assert run.data is not None
    column = run.data.observation_columns[0]
    for path in sorted(Path(str(family.settings.feast_repo)).rglob("*.parquet")):
        frame = pd.read_parquet(path)
        if column not in frame.columns or frame[column].isna().all():
            continue
        times = pd.to_datetime(frame["event_timestamp"], utc=True)
        inside = frame.index[(times > run.data.bounds.training.start + pd.Timedelta(days=30)) & frame[column].notna()]
        if len(inside):
            frame.loc[inside[0], column] += 1.0
            frame.to_parquet(path, index=False)
            return column, times[inside[0]]
    raise AssertionError(f"no file has column {column}")


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        ("models:/nowhere-ppo/1", "nowhere-ppo"),
        ("models:/line-ppo/999", "999"),
        ("models:/line-ppo@favourite", "favourite"),
        ("no-such-run", "no-such-run"),
        ("runs:/0123456789abcdef0123456789abcdef/model.zip", "0123456789abcdef"),
    ],
)
def test_a_parent_that_is_not_there_is_named(family: Family, base: Run, parent: str, words: str) -> None:
    """The run fails before anybody is asked for features, and says what it looked for."""
    family.ensure_workers(1)
    run_id = f"orphan-{abs(hash(parent))}"
    family.go_on(run_id, parent)
    run = family.wait(run_id, lambda run: run.ended)
    assert run.state is State.FAILED
    assert run.failed_from is State.REQUESTED
    assert run.failure is not None
    assert (run.failure.kind, run.failure.field) == ("parent_missing", "parent")
    assert words in run.failure.words
    assert [logged.type for logged in family.history(run_id)] == ["run_requested", "run_claimed", "run_failed"]


def test_what_may_not_change_is_told_with_both_sides(family: Family, base: Run) -> None:
    """Before training, and before anything is computed for it."""
    family.ensure_workers(1)
    family.go_on("misfit", "base", agent={"net_arch": [32, 32]}, env={"window": 4})
    run = family.wait("misfit", lambda run: run.ended)
    assert run.failure is not None
    assert (run.failure.kind, run.failure.field) == ("parent_unfit", "agent.net_arch, env.window")
    assert "the parent has [16, 16], the request [32, 32]" in run.failure.words


def test_an_altered_artifact_of_the_parent_is_refused(family: Family) -> None:
    """Of the model's files and of its last checkpoint: one byte is enough."""
    family.ensure_workers(2)
    family.request("honest", model="altered-ppo", agent=_agent(HALF))
    honest = family.registered("honest")
    assert honest.registered is not None
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    version = client.get_model_version("altered-ppo", str(honest.registered.version))
    assert version.source is not None
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    record = next(_served(family, model.artifact_location).rglob("training.json"))
    text = record.read_text()
    record.write_text(text.replace('"seed": 7', '"seed": 8'))
    assert record.read_text() != text
    assert "altered" in _failed_words(family, "tampered-model", "honest", "artifact_damaged")
    record.write_text(text)

    assert honest.tracking_run_id is not None
    tracked = client.get_run(honest.tracking_run_id).info.artifact_uri
    stored = honest.checkpoints[-1].artifact
    checkpoint = next(_served(family, tracked).rglob(f"{stored.sha256[:16]}-*.zip"))
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert stored.sha256 in _failed_words(family, "tampered-checkpoint", "honest", "artifact_damaged")
    checkpoint.write_bytes(content)
    family.go_on("untampered", "honest")
    family.registered("untampered")


def _failed_words(family: Family, run_id: str, parent: str, kind: str) -> str:
    family.go_on(run_id, parent)
    run = family.wait(run_id, lambda run: run.ended)
    assert run.state is State.FAILED
    assert run.failure is not None
    assert run.failure.kind == kind, run.failure
    return run.failure.words


def _served(family: Family, location: str | None) -> Path:
    """The folder on this machine in which the tracking server keeps what it hands out as `mlflow-artifacts:`."""
    assert location is not None
    parsed = urlparse(location)
    if parsed.scheme == "mlflow-artifacts":
        return next(Path(str(family.settings.home)).parent.rglob("artifacts")) / parsed.path.lstrip("/")
    return Path(parsed.path or location)


def test_a_feature_service_that_is_gone_is_named(family: Family) -> None:
    """Ingest is not asked to make another one: the parent was trained with this one."""
    family.ensure_workers(2)
    family.request("served", model="served-ppo", features=_features(8), agent=_agent(HALF))
    served = family.registered("served")
    request, feature_config = served.plan
    name = service_name(OBSERVATION, request.symbol, request.timeframe, feature_config)
    store = FeatureStore(repo_path=str(family.settings.feast_repo))
    store.delete_feature_service(name)
    assert name in _failed_words(family, "unserved", "served", "features_missing")
    assert "features_requested" not in [logged.type for logged in family.history("unserved")]


def test_a_zip_logged_by_hand_gives_its_weights_and_whole_only_to_whom_the_operator_trusts(
    family: Family, base: Run, tmp_path: Path
) -> None:
    """The sender of a command cannot have it read whole; a worker with its digest among its settings does."""
    family.ensure_workers(2)
    assert base.data is not None
    fields = len(base.data.observation_columns) + 4
    zipped = _zip_by_hand(tmp_path, fields)
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    experiment = client.get_experiment_by_name("drl-trading")
    assert experiment is not None
    tracked = client.create_run(experiment.experiment_id)
    client.log_artifact(tracked.info.run_id, str(zipped), "by-hand")
    parent = f"runs:/{tracked.info.run_id}/by-hand/{zipped.name}"
    given = {name: value for name, value in REQUEST.items() if name not in ("mode", "agent")}
    agent = {"total_timesteps": 1_024, "net_arch": [16, 16], "hyperparameters": {"n_steps": 256, "batch_size": 64}}

    family.go_on("by-weights", parent, **given | {"model": "hand-ppo", "agent": agent})
    by_weights = family.registered("by-weights")
    assert by_weights.parent is not None
    assert (by_weights.parent.kind, by_weights.parent.digest) == ("sb3_weights", file_digest(zipped))
    (started,) = _events(family, "by-weights", e.TrainingStarted)
    assert started.inheritance is not None
    assert (started.step, started.inheritance.carried) == (0, ("weights",))

    for worker in family.workers:
        family.kill(worker)
    trusting = {"TRAINING_FSM_TRUSTED_MODEL_DIGESTS": json.dumps([file_digest(zipped)])}
    family.start_worker("--once", "--run", "by-trust", **trusting)
    family.go_on("by-trust", parent, **given | {"model": "hand-ppo", "agent": {"total_timesteps": 512}})
    by_trust = family.registered("by-trust")
    assert by_trust.parent is not None
    assert (by_trust.parent.kind, by_trust.parent.steps) == ("sb3_whole", 256)
    (started,) = _events(family, "by-trust", e.TrainingStarted)
    assert started.inheritance is not None
    assert (started.step, started.inheritance.carried) == (256, ("weights", "optimizer", "steps"))
    assert by_trust.plan.request.agent.hyperparameters.gamma == 0.5, "inherited from the zip"


def _zip_by_hand(folder: Path, fields: int) -> Path:
    class Toy(gym.Env[np.ndarray, int]):
        observation_space = gym.spaces.Box(-10, 10, (fields,), np.float32)
        action_space = gym.spaces.Discrete(3)

        def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
            return np.zeros(fields, np.float32), {}

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
            return np.zeros(fields, np.float32), 0.0, False, True, {}

    net = {"net_arch": [16, 16]}
    agent = PPO("MlpPolicy", Toy(), n_steps=128, batch_size=64, n_epochs=1, gamma=0.5, policy_kwargs=net, device="cpu")
    agent.learn(256)
    agent.save(folder / "ppo.zip")
    return folder / "ppo.zip"


def test_a_worker_killed_while_it_looks_up_costs_nothing(family: Family, base: Run) -> None:
    """The next one looks up again; one parent, one look, one training."""
    family.ensure_workers(2)
    family.go_on("looked-up", "base", agent={"total_timesteps": 1_024})
    run = family.wait("looked-up", lambda run: run.worker is not None, 60)
    family.kill(family.worker_of(run))
    family.ensure_workers(2)
    family.registered("looked-up")
    kinds = [logged.type for logged in family.history("looked-up")]
    for once in ("parent_resolved", "features_ready", "data_frozen", "training_started", "model_registered"):
        assert kinds.count(once) == 1, once
    _assert_as_written(family, "looked-up")


def test_of_two_challengers_the_second_meets_the_first(family: Family, base: Run) -> None:
    """Both were judged when there was no champion; only one promotion can have been decided so."""
    family.ensure_workers(1)
    for worker in family.workers[1:]:
        family.kill(worker)
    rules: dict[str, object] = {"gate": [], "champion": {"metric": "total_return_fraction"}}
    short: dict[str, object] = {"total_timesteps": 1_024}
    family.go_on("slow", "base", model="crown-ppo", agent=short, evaluation=rules)
    slow = family.wait("slow", lambda run: run.evaluation is not None)
    sleeper = family.worker_of(slow)
    os.kill(sleeper.pid, signal.SIGSTOP)
    family.start_worker("--once", "--run", "quick")  # no other would leave the slow one alone
    try:
        assert not family.wait("slow", lambda _: True).ended, "it was stopped in time"
        family.go_on("quick", "base", model="crown-ppo", agent=short | {"seed": 3}, evaluation=rules)
        quick = family.registered("quick")
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    slow = family.wait("slow", lambda run: run.ended)
    first, second = _events(family, "slow", e.EvaluationFinished)
    assert first.contest is not None
    assert second.contest is not None
    assert quick.registered is not None
    champion = ModelRef(name="crown-ppo", version=quick.registered.version)
    assert (first.contest.champion, second.contest.champion) == (None, champion)
    assert second.contest.bars > 0
    won = (
        second.contest.challenger_metrics["total_return_fraction"]
        > (second.contest.champion_metrics["total_return_fraction"])
    )
    assert slow.state is (State.REGISTERED if won else State.REJECTED)
    promoted = family.log.champion("crown-ppo")
    assert promoted.promoted is not None
    assert promoted.stream_version == (2 if won else 1)
    assert promoted.promoted.run_id == ("slow" if won else "quick")
    _assert_alias(family, "crown-ppo", "champion", promoted.promoted.version)


def _assert_alias(family: Family, name: str, alias: str, version: int) -> None:
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    _soon(lambda: client.get_registered_model(name).aliases.get(alias) == str(version), f"{name}@{alias} is {version}")


def _soon(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 40
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
