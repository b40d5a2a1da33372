"""A run's whole life as events, for whoever needs a log with something in it."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from training_fsm.domain import events as e
from training_fsm.domain.continuation import inheritance, resolve
from training_fsm.domain.decide import feature_request_id
from training_fsm.domain.facts import (
    Artifact,
    ColumnNormalisation,
    Fingerprint,
    Gaps,
    MetricBand,
    ModelRef,
    PartBounds,
    SplitBounds,
    Verdict,
)
from training_fsm.domain.lineage import Parent, TrainingRecord
from training_fsm.domain.request import ContinueRequest, TrainingRequest
from training_fsm.domain.run import Run
from training_fsm.domain.timeframe import TimeRange

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = datetime(2018, 4, 1, tzinfo=UTC)


def pytest_configure() -> None:
    """What a test runner says of its own terminal is not how wide our output may be."""
    os.environ.pop("COLUMNS", None)


TRAINING = "tests/integration/training/"
NEIGHBOURS = (TRAINING, "tests/integration/messaging/", "tests/integration/local/")
"""Folders whose tests speak on the neighbours' topics, which are one for all on a broker."""


class _Scheduling(LoadScopeScheduling):
    """Of two processes, each with servers of its own, one trains and the other talks to neighbours.

    Both share what is left, file by file.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(TRAINING):
            return TRAINING
        return "neighbours" if nodeid.startswith(NEIGHBOURS) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is not shared comes first when processes share the tests, and what takes longest is first of it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (not item.nodeid.startswith(TRAINING), not item.nodeid.startswith(NEIGHBOURS)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """What `pytest -n 2` does instead of spreading tests one by one."""
    return _Scheduling(config, log)


@pytest.fixture
def request_fields() -> dict[str, object]:
    """A request as a user writes it, as small as it may be."""
    return {
        "mode": "from_scratch",
        "model": "eurusd-ppo",
        "symbol": "EURUSD",
        "base_timeframe": "1h",
        "timeframe": "4h",
        "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
        "features": {"semver": "1.0.0", "feature_definitions": [{"name": "rsi"}]},
        "data": {"columns": {"close": "close_price_value"}},
    }


@pytest.fixture
def life(request_fields: dict[str, object]) -> Callable[[str], tuple[e.Event, ...]]:
    """From a run's id to its events, from the request to the registered model."""

    def events_of(run_id: str) -> tuple[e.Event, ...]:
        request = TrainingRequest.model_validate_json(json.dumps(request_fields), strict=True)
        asked = feature_request_id(run_id, 1)
        steps = request.agent.whole_timesteps
        return (
            e.RunRequested(request=request, feature_config=request.features.versioned(NOON)),
            e.FeaturesRequested(request_id=asked, attempt=1, deadline=NOON),
            e.FeatureRequestAnswered(request_id=asked, status=202, words="accepted"),
            e.FeaturesReady(request_id=asked, total_features_computed=6, success_details={}),
            e.RunClaimed(token=1, worker="worker-1", lease_s=60),
            _frozen(),
            e.TrainingStarted(token=1, fingerprint=_fingerprint(), tracking_run_id="tracking-1"),
            e.CheckpointSaved(step=2048, **_file("checkpoints/first").model_dump()),
            e.CheckpointSaved(step=steps, **_file("checkpoints/last").model_dump(), curves=_file("curves/last")),
            e.TrainingFinished(checkpoint="c" * 64, steps=steps),
            _evaluated(),
            e.RegistrationIntended(key=f"{run_id}/1"),
            e.ModelRegistered(name=request.model, version=3, digest="d" * 64),
        )

    return events_of


@pytest.fixture
def continued_life(
    life: Callable[[str], tuple[e.Event, ...]],
) -> Callable[[str, bool], tuple[e.Event, ...]]:
    """From a run's id to the events of one that continues the model of `life`; `lacking` asks ingest for a part."""

    def events_of(run_id: str, lacking: bool = False) -> tuple[e.Event, ...]:
        requested, registered = life("parent")[0], life("parent")[-1]
        assert isinstance(requested, e.RunRequested)
        assert isinstance(requested.request, TrainingRequest)
        assert isinstance(registered, e.ModelRegistered)
        asked = ContinueRequest.model_validate(
            {"mode": "continue", "parent": "models:/eurusd-ppo/3", "agent": {"seed": 1}, "range": {"end": LATER}}
        )
        resolved = resolve(asked, parent_of(life("parent")), NOON)
        found: tuple[e.Event, ...] = (
            e.FeaturesReady(request_id=e.FOUND_IN_FEAST, total_features_computed=0, success_details={}),
        )
        if lacking:
            part = TimeRange(start=requested.request.range.end, end=LATER)
            question = feature_request_id(run_id, 1)
            found = (
                e.FeaturesLacking(service="observation_space_EURUSD_4h_1.0.0_abc", ranges=(part,)),
                e.FeaturesRequested(request_id=question, attempt=1, deadline=NOON, range=part),
                e.FeatureRequestAnswered(request_id=question, status=202, words="accepted"),
                e.FeaturesReady(request_id=question, total_features_computed=6, success_details={}),
                e.RunClaimed(token=2, worker="worker-1", lease_s=60),
            )
        steps = resolved.parent.steps + resolved.request.agent.whole_timesteps
        data = _frozen().model_copy(update={"digest": "e" * 64})
        return (
            e.RunRequested(request=asked, feature_config=None),
            e.RunClaimed(token=1, worker="worker-1", lease_s=60),
            resolved,
            *found,
            data,
            e.TrainingStarted(
                token=2 if lacking else 1,
                fingerprint=_fingerprint(),
                tracking_run_id="tracking-2",
                step=resolved.parent.steps,
                inheritance=inheritance(resolved.parent, resolved.request, data),
            ),
            e.CheckpointSaved(step=steps, **_file("checkpoints/last").model_dump(), curves=_file("curves/last")),
            e.TrainingFinished(checkpoint="a" * 64, steps=steps),
            _evaluated(),
            e.RegistrationIntended(key=f"{run_id}/1"),
            e.ModelRegistered(
                name=registered.name,
                version=registered.version + 1,
                digest="e" * 64,
                parent=resolved.parent.model,
                root=resolved.parent.root,
                depth=resolved.parent.depth,
            ),
        )

    return events_of


def parent_of(events: tuple[e.Event, ...]) -> Parent:
    """The registered model of a life, as the registry gives it to a child."""
    requested, registered = events[0], events[-1]
    assert isinstance(requested, e.RunRequested)
    assert isinstance(registered, e.ModelRegistered)
    assert isinstance(requested.request, TrainingRequest)
    assert requested.feature_config is not None
    record = TrainingRecord(
        run_id="parent",
        request=requested.request,
        feature_config=requested.feature_config,
        data=_frozen(),
        checkpoint=_file("checkpoints/last"),
        steps=requested.request.agent.whole_timesteps,
        fingerprint=_fingerprint(),
        trained_until=NOON,
        parent=None,
        root=None,
        depth=0,
    )
    return Parent(
        kind="training_fsm",
        model=ModelRef(name=registered.name, version=registered.version),
        digest=registered.digest,
        checkpoint=record.checkpoint,
        steps=record.steps,
        record=record,
    )


@pytest.fixture
def live(life: Callable[[str], tuple[e.Event, ...]]) -> Callable[..., Run]:
    """Let a run live in a real log, in as many transactions as in reality; `until` stops behind so many events."""

    def written(engine: sa.Engine, run_id: str, until: int | None = None) -> Run:
        from training_fsm.ports import Cause
        from training_fsm.store.event_log import PostgresEventLog

        log, cause = PostgresEventLog(engine), Cause("orchestrator", "message-1", run_id)
        events = life(run_id)[:until]
        with log.begin() as unit:
            run = unit.append(run_id, events[:2], cause)
        for event in events[2:4]:
            with log.begin() as unit:
                run = unit.append(run_id, [event], cause)
        if len(events) > 4:
            claimed = log.claim("worker-1", 60, run_id)
            assert claimed is not None
            run, lease = claimed
            for event in events[5:]:
                run = log.append_fenced(lease, [event], Cause("worker-1", "work", run_id))
        return run

    return written


def _file(name: str) -> Artifact:
    return Artifact(uri=f"runs:/tracking-1/{name}", sha256="a" * 64, size_bytes=1234)


def _part(first: int, last: int) -> PartBounds:
    return PartBounds(first=first, last=last, start=NOON, end=NOON)


def _frozen() -> e.DataFrozen:
    return e.DataFrozen(
        artifact=_file("data/frozen"),
        digest="f" * 64,
        rows=1500,
        warmup_rows=14,
        gaps=Gaps(count=2, longest_bars=12, longest_after=NOON),
        periods_per_year=1560.0,
        observation_columns=("rsi",),
        bounds=SplitBounds(training=_part(0, 1200), validation=_part(1201, 1350), test=_part(1351, 1500)),
        normalisation=(ColumnNormalisation(column="rsi", mean=50.0, deviation=10.0),),
        warnings=("149 test bars, fewer than 252",),
    )


def _fingerprint() -> Fingerprint:
    return Fingerprint(
        python="3.11",
        torch="2.13.0",
        numpy="2.4",
        stable_baselines3="2.9",
        gymnasium="1.4",
        training_fsm="0.1.0",
        cpu_capability="AVX2",
        blas="mkl",
        torch_threads=1,
        device="cpu",
        platform="linux",
    )


def _evaluated() -> e.EvaluationFinished:
    return e.EvaluationFinished(
        # A metric that is no number must not look like a difference.
        metrics={"sharpe": 0.61, "profit_factor": float("nan"), "calmar": float("inf")},
        bands=(MetricBand(metric="sharpe", low=0.1, high=1.1, confidence=0.95),),
        gate=(Verdict(name="sharpe", passed=True, score=0.61, threshold=0.5, explanation="0.61, at least 0.5 wanted"),),
        validations=(),
        passed=True,
        report=_file("report/report.json"),
    )
