from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from training_fsm.domain import events as e
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import Artifact, Failure
from training_fsm.domain.machine import destination
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.service.audit_log import LoggedEvent
from training_fsm.service.retention_service import FILES_PER_EVENT, Retention, releases
from training_fsm.service.stored_files import FILE_EVENTS, files_of, named, still_needed

Life = Callable[[str], tuple[e.Event, ...]]
History = tuple[Run, list[LoggedEvent]]

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
MONTH = Retention(checkpoints=3, data=timedelta(days=30))


def _told(run_id: str, events: Sequence[e.Event]) -> History:
    """The run that the events add up to, and they as they lie in the log, an hour apart."""
    run: Run | None = None
    told = []
    for version, event in enumerate(events, start=1):
        to_state = destination(run, event)
        logged = LoggedEvent(
            position=version,
            stream=f"run-{run_id}",
            version=version,
            type=event.type(),
            schema_version=1,
            occurred_at=BEGIN + timedelta(hours=version),
            from_state=run.state.value if run else None,
            to_state=to_state.value,
            actor="worker-1",
            causation_id="1",
            correlation_id=run_id,
            payload=event.model_dump_json(),
            previous_hash=b"",
            hash=b"",
            computed_hash=b"",
        )
        told.append(logged)
        run = evolve(run, run_id, event, to_state)
    assert run is not None
    return run, told


def _file(name: str) -> Artifact:
    return Artifact(uri=f"runs:/t/{name}", sha256="a" * 64, size_bytes=10)


def _saved(number: int, last_step: int | None = None, name: str = "") -> e.CheckpointSaved:
    artifact, curves = _file(f"c/{name or number}"), _file(f"curves/{name or number}")
    return e.CheckpointSaved(step=last_step or number, **artifact.model_dump(), curves=curves)


@pytest.fixture
def training(life: Life) -> Callable[..., tuple[e.Event, ...]]:
    """A life up to its training, with so many checkpoints, the last one after the last update."""

    def events_of(checkpoints: int) -> tuple[e.Event, ...]:
        events = life("r")
        finished = events[9]
        assert isinstance(finished, e.TrainingFinished)
        saved = [
            _saved(number, finished.steps if number == checkpoints else None) for number in range(1, checkpoints + 1)
        ]
        return (*events[:7], *saved)

    return events_of


def _ended(life: Life, training: tuple[e.Event, ...], ending: str) -> tuple[e.Event, ...]:
    finished, evaluated, intended, registered = life("r")[9:]
    failed = e.RunFailed(reason=Failure(kind="training_error", words="w"), failed_from=State.TRAINING)
    endings: dict[str, tuple[e.Event, ...]] = {
        "TRAINING": (),
        "PAUSED": (e.PauseRequested(actor="a", why=""), e.RunPaused(actor="a", why="", step=1)),
        "EVALUATING": (finished,),
        "REGISTERED": (finished, evaluated, intended, registered),
        "REJECTED": (finished, evaluated, e.ModelRejected(failed=("sharpe",))),
        "FAILED": (failed,),
        "CANCELLED": (e.RunCancelled(actor="a", why=""),),
    }
    return (*training, *endings[ending])


def _going(history: History, retention: Retention = MONTH, after: timedelta = timedelta()) -> set[str]:
    """Names of the files that are released at some time after the last event."""
    run, told = history
    plan = releases(run, files_of(told), retention, told[-1].occurred_at + after)
    return {artifact.uri.removeprefix("runs:/t/") for one in plan for artifact in one.artifacts}


STATES = ("TRAINING", "PAUSED", "EVALUATING", "REGISTERED", "REJECTED", "FAILED", "CANCELLED")


@pytest.mark.parametrize("state", STATES)
def test_old_checkpoints_go_with_their_curves_in_every_state(
    state: str, life: Life, training: Callable[..., tuple[e.Event, ...]]
) -> None:
    """All but the newest three; whatever else there is stays while it may be needed."""
    going = _going(_told("r", _ended(life, training(5), state)))
    assert going == {"c/1", "curves/1", "c/2", "curves/2"}


@pytest.mark.parametrize("state", STATES)
def test_a_run_that_may_go_on_keeps_what_a_resume_falls_back_to(
    state: str, life: Life, training: Callable[..., tuple[e.Event, ...]]
) -> None:
    """Also where fewer are wanted; of a model, and of a run that nobody can bring back, as many as are wanted."""
    final = state in ("REGISTERED", "CANCELLED")
    going = _going(_told("r", _ended(life, training(5), state)), Retention(1, timedelta(days=30)))
    assert {name for name in going if name.startswith("c/")} == {f"c/{n}" for n in range(1, 5 if final else 3)}


@pytest.mark.parametrize("state", STATES)
def test_frozen_data_goes_a_while_after_an_end_without_model(
    state: str, life: Life, training: Callable[..., tuple[e.Event, ...]]
) -> None:
    """Counted from the end, not from any event after it; never the data of a model, or of a run that goes on."""
    history = _told("r", _ended(life, training(2), state))
    assert _going(history, after=timedelta(days=30)) == set()
    late = _going(history, after=timedelta(days=30, seconds=1))
    without_model = state in ("REJECTED", "FAILED", "CANCELLED")
    assert late == ({"runs:/tracking-1/data/frozen"} if without_model else set())


def test_a_retried_run_is_counted_from_its_last_end(life: Life, training: Callable[..., tuple[e.Event, ...]]) -> None:
    """It has failed for ten days, not for forty."""
    events = _ended(life, training(2), "FAILED")
    failed = events[-1]
    run, told = _told("r", (*events, e.RunRetried(actor="a", why=""), failed))
    files = files_of(told)
    assert files.since == told[-1].occurred_at
    assert releases(run, files, MONTH, told[-3].occurred_at + timedelta(days=30, seconds=1)) == ()


def test_what_was_released_is_not_released_again(life: Life, training: Callable[..., tuple[e.Event, ...]]) -> None:
    """Unless an event has named it again since."""
    events = training(4)
    plan = releases(*_plan_of(events))
    gone = e.ArtifactsReleased(artifacts=plan[0].artifacts, why=plan[0].why)
    assert _going(_told("r", (*events, gone))) == set()
    again = (*events, gone, _saved(1), *(_saved(n) for n in (5, 6, 7)))
    assert "c/1" in _going(_told("r", again))


def _plan_of(events: tuple[e.Event, ...]) -> tuple[Run, object, Retention, datetime]:
    run, told = _told("r", events)
    return run, files_of(told), MONTH, told[-1].occurred_at


def test_a_file_that_is_named_twice_stays_while_its_newer_name_is_needed(
    training: Callable[..., tuple[e.Event, ...]],
) -> None:
    """The same bytes under the same place, saved early and late."""
    events = (*training(2), *(_saved(n) for n in (3, 4)), _saved(5, name="1"))
    assert _going(_told("r", events)) == {"c/2", "curves/2"}


def test_a_child_keeps_its_parent_s_files_for_the_parent(
    continued_life: Callable[[str], tuple[e.Event, ...]],
) -> None:
    """They are another run's to release, also after the child has failed for long."""
    failed = e.RunFailed(reason=Failure(kind="training_error", words="w"), failed_from=State.TRAINING)
    events = (*continued_life("r")[:6], failed)
    history = _told("r", events)
    resolved = events[2]
    assert isinstance(resolved, e.ParentResolved)
    theirs = {artifact.uri for artifact in named(resolved)}
    run, told = history
    plan = releases(run, files_of(told), MONTH, told[-1].occurred_at + timedelta(days=99))
    going = {artifact.uri for one in plan for artifact in one.artifacts}
    assert theirs >= {"runs:/tracking-1/checkpoints/last", "runs:/tracking-1/data/frozen"}
    assert going & theirs == set()


def test_a_zip_that_was_kept_beside_the_run_goes_with_its_data(
    continued_life: Callable[[str], tuple[e.Event, ...]],
) -> None:
    """A parent that is no model of ours was stored for this run alone; a model's is kept for ever."""
    life = continued_life("r")
    resolved = life[2]
    assert isinstance(resolved, e.ParentResolved)
    zip_ = resolved.parent.model_copy(update={"kind": "sb3_weights", "record": None, "checkpoint": _file("parent/zip")})
    life = (*life[:2], resolved.model_copy(update={"parent": zip_}), *life[3:])
    assert "parent/zip" not in _going(_told("r", life), after=timedelta(days=99))
    failed = e.RunFailed(reason=Failure(kind="training_error", words="w"), failed_from=State.TRAINING)
    history = _told("r", (*life[:6], failed))
    assert "parent/zip" not in _going(history)
    assert "parent/zip" in _going(history, after=timedelta(days=99))


def test_very_many_files_go_in_several_events(training: Callable[..., tuple[e.Event, ...]]) -> None:
    """No event outgrows the greatest size."""
    run, told = _told("r", training(500))
    plan = releases(run, files_of(told), MONTH, told[-1].occurred_at)
    assert [len(one.artifacts) for one in plan] == [FILES_PER_EVENT, FILES_PER_EVENT, 2 * 497 - 2 * FILES_PER_EVENT]
    long = tuple(_file("x" * 400) for _ in range(FILES_PER_EVENT))
    assert len(e.ArtifactsReleased(artifacts=long, why="w").model_dump_json()) < 524_288


def test_every_event_that_names_a_file_is_looked_at() -> None:
    """At whatever depth: an event that is added to the domain protects its files by itself."""
    assert set(FILE_EVENTS) == {
        "artifacts_released",
        "checkpoint_saved",
        "data_frozen",
        "evaluation_finished",
        "parent_resolved",
    }


def test_a_file_is_needed_while_any_stream_names_it_and_has_not_released_it() -> None:
    """Two runs can name the same file: both must have released it."""

    def told(stream: str, *events: e.Event) -> list[LoggedEvent]:
        template = LoggedEvent(1, stream, 1, "", 1, BEGIN, None, None, "a", "c", "c", "", b"", b"", b"")
        return [
            replace(template, type=event.type(), version=version, payload=event.model_dump_json())
            for version, event in enumerate(events, start=1)
        ]

    shared, gone = _file("c/1"), e.ArtifactsReleased(artifacts=(_file("c/1"),), why="")
    a, b = told("run-a", _saved(1), gone), told("run-b", _saved(1))
    assert still_needed(a, {shared.uri}, {}) == set()
    assert still_needed([*a, *b], {shared.uri}, {}) == {shared.uri}
    assert still_needed([*b, *a], {shared.uri}, {}) == {shared.uri}
    assert still_needed([*a, *b], {shared.uri}, {"run-b": {shared.uri}}) == set()
    assert still_needed(told("run-a", _saved(1), gone, _saved(1)), {shared.uri}, {}) == {shared.uri}
    assert still_needed([*a, *b], {"runs:/t/else"}, {}) == set()
