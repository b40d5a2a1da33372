"""The command line against a real, migrated database."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from training_fsm.cli.app import app
from training_fsm.domain import events as e
from training_fsm.domain.continuation import inheritance, resolve
from training_fsm.domain.facts import Contest, Difference, ModelRef, SharedRows
from training_fsm.domain.lineage import Parent, TrainingRecord
from training_fsm.domain.request import ContinueRequest, TrainingRequest
from training_fsm.ports import Cause
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog

NOW = datetime(2026, 11, 25, tzinfo=UTC)
CAUSE = Cause("worker-1", "work", "family")

Life = tuple[e.Event, ...]


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    engine = make_engine(migrated_database_url, application_name="test")
    yield engine
    engine.dispose()


@pytest.fixture
def cli(migrated_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line against the database; stdout and stderr apart."""
    monkeypatch.setenv("TRAINING_FSM_HOME", str(tmp_path))
    monkeypatch.setenv("TRAINING_FSM_DATABASE_URL", migrated_database_url)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(words), input=stdin)

    return run


@pytest.fixture
def shared() -> SharedRows:
    """Bars of the parent, of which Feast now has one otherwise."""
    return SharedRows(
        start=datetime(2017, 1, 1, tzinfo=UTC),
        end=datetime(2017, 12, 29, 20, tzinfo=UTC),
        rows=1500,
        parent_digest="f" * 64,
        found_digest="0" * 64,
        rows_different=1,
        first_difference=Difference(time=datetime(2017, 3, 1, 4, tzinfo=UTC), column="rsi", parent=50.0, found=51.5),
    )


@pytest.fixture
def child(life: Callable[[str], Life], shared: SharedRows) -> Callable[..., Life]:
    """From a parent to the life of a run that continues it, with what the request changes."""

    def events_of(run_id: str, parent: Parent, version: int, **changes: object) -> Life:
        asked = ContinueRequest.model_validate({"mode": "continue", "parent": f"models:/{parent.model}"} | changes)
        inherited = None if parent.record else life("x")[0].request.model_dump(mode="json")
        resolved = resolve(asked, parent, NOW, inherited)
        first = resolved.request
        _, _, _, _, claimed, frozen, started, *_, evaluated, intended, registered = life(run_id)
        steps = parent.steps + first.agent.whole_timesteps
        data = frozen.model_copy(update={"digest": run_id[0] * 64, "shared": shared})
        going_on = {"step": parent.steps, "inheritance": inheritance(parent, first, data)}
        return (
            e.RunRequested(request=asked, feature_config=None),
            claimed,
            resolved,
            e.FeaturesReady(request_id=e.FOUND_IN_FEAST, total_features_computed=0, success_details={}),
            data,
            started.model_copy(update=going_on),
            e.CheckpointSaved(step=steps, uri="runs:/t/c", sha256="a" * 64, size_bytes=1),
            e.TrainingFinished(checkpoint="a" * 64, steps=steps),
            evaluated.model_copy(update={"metrics": {"sharpe": 0.5 + version / 10, "total_return_fraction": 0.031}}),
            intended,
            registered.model_copy(
                update={
                    "name": first.model,
                    "version": version,
                    "parent": parent.model,
                    "root": parent.root,
                    "depth": parent.depth,
                }
            ),
        )

    return events_of


def parent_of(events: Sequence[e.Event]) -> Parent:
    """The model that a life ended with, as the registry gives it to a child."""
    by_type = {event.type(): event for event in events}
    resolved = by_type.get("parent_resolved", events[0])
    registered = by_type["model_registered"]
    assert isinstance(resolved, e.ParentResolved | e.RunRequested)
    assert isinstance(resolved.request, TrainingRequest)
    checkpoint = by_type["checkpoint_saved"]
    record = TrainingRecord(
        run_id="r",
        request=resolved.request,
        feature_config=resolved.feature_config,
        data=by_type["data_frozen"].model_dump(),
        checkpoint=checkpoint.artifact,
        steps=checkpoint.step,
        fingerprint=by_type["training_started"].fingerprint,
        trained_until=NOW,
        parent=registered.parent,
        root=registered.root,
        depth=registered.depth,
    )
    return Parent(
        kind="training_fsm",
        model=ModelRef(name=registered.name, version=registered.version),
        digest=registered.digest,
        checkpoint=checkpoint.artifact,
        steps=checkpoint.step,
        record=record,
    )


@pytest.fixture
def models(engine: sa.Engine, life: Callable[[str], Life], child: Callable[..., Life]) -> None:
    """A log with two lines: eurusd-ppo/1 with two children, one with a child of another name; and a zip's children."""
    log = PostgresEventLog(engine)

    def registered(run_id: str, events: Life, promoted: e.ChampionPromoted | None = None) -> Parent:
        with log.begin() as unit:
            unit.append(run_id, events, CAUSE)
            if promoted is not None:
                unit.promote(promoted, 0 if promoted.supersedes is None else 1, CAUSE)
        return parent_of(events)

    def contested(events: Life) -> Life:
        contest = Contest(
            champion=ModelRef(name="eurusd-ppo", version=1),
            stream_version=1,
            metric="sharpe",
            start=datetime(2017, 11, 24, tzinfo=UTC),
            end=datetime(2017, 12, 29, tzinfo=UTC),
            bars=149,
            challenger_metrics={"sharpe": 0.8},
            champion_metrics={"sharpe": 0.61},
        )
        return tuple(
            event.model_copy(update={"contest": contest}) if isinstance(event, e.EvaluationFinished) else event
            for event in events
        )

    def champion(version: int, supersedes: int | None = None) -> e.ChampionPromoted:
        return e.ChampionPromoted(
            name="eurusd-ppo", version=version, digest="d" * 64, run_id="x", supersedes=supersedes
        )

    first = life("run-1")
    first = (*first[:-1], first[-1].model_copy(update={"version": 1}))
    root = registered("run-1", first, champion(1))
    registered("run-2", child("2", root, 2, agent={"total_timesteps": 4096}))
    changes = {"range": {"end": "2018-07-01T00:00:00Z"}, "agent": {"seed": 3, "hyperparameters": {"gamma": 0.9}}}
    third = registered("run-3", contested(child("3", root, 3, **changes)), champion(3, 1))
    registered("run-4", child("4", third, 1, model="night"))
    zipped = root.model_copy(
        update={"kind": "sb3_weights", "model": ModelRef(name="handmade", version=7), "record": None, "steps": 0}
    )
    registered("run-5", child("5", zipped, 1, model="tamed"))
    registered("run-6", child("6", zipped, 2, model="tamed"))
