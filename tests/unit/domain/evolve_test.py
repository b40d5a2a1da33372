"""Folding: whatever the record says, whatever the machine says today."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from training_fsm.domain import events as e
from training_fsm.domain.errors import TransitionRefused
from training_fsm.domain.evolve import CHECKPOINTS_KEPT, evolve
from training_fsm.domain.facts import Failure
from training_fsm.domain.machine import destination
from training_fsm.domain.run import Run
from training_fsm.domain.states import State

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
Life = Callable[[str], tuple[e.Event, ...]]
FAULT = Failure(kind="outside_unavailable", words="mlflow is away")


def _fold(*events: e.Event, run: Run | None = None) -> Run:
    for event in events:
        run = evolve(run, "r", event, destination(run, event))
    assert run is not None
    return run


def test_a_whole_life_folds_into_a_registered_run(life: Life) -> None:
    """What a resume, a list and the registry need is on the run."""
    run = _fold(*life("r"))
    assert (run.state, run.version, run.token, run.worker, run.started) == (State.REGISTERED, 13, 1, None, True)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [2048, 10_240]
    assert run.registered is not None
    assert (run.registration_key, run.registered.version, run.tracking_run_id) == ("r/1", 3, "tracking-1")
    assert run.features is not None
    assert run.features.accepted


def test_old_history_folds_although_the_machine_refuses_it(life: Life) -> None:
    """The state comes from the record: a table that has changed since does not stop a replay."""
    run = _fold(*life("r")[:2])
    finished = life("r")[9]
    with pytest.raises(TransitionRefused):
        destination(run, finished)
    folded = evolve(run, "r", finished, State.EVALUATING)
    assert (folded.state, folded.version) == (State.EVALUATING, 3)
    again = evolve(folded, "r", e.RunRetried(actor="a", why="w"), State.REQUESTED)
    assert again.state is State.REQUESTED


def test_a_stream_that_does_not_begin_with_a_request_is_damaged(life: Life) -> None:
    """The error names the run and what was found."""
    with pytest.raises(ValueError, match="run r: the first event must be run_requested, got features_requested"):
        evolve(None, "r", life("r")[1], State.AWAITING_FEATURES)


def test_a_fold_changes_no_run_that_was_there_before(life: Life) -> None:
    """Runs are values."""
    before = _fold(*life("r")[:4])
    copy = before.model_copy(deep=True)
    _fold(*life("r")[4:], run=before)
    assert before == copy


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_stored_run_goes_on_as_if_it_had_never_been_stored(cut: int, life: Life) -> None:
    """Folding through JSON at any point, as heads are kept, gives the same run."""
    whole = life("r")
    stored = Run.model_validate_json(_fold(*whole[:cut]).model_dump_json())
    assert _fold(*whole[cut:], run=stored).model_dump_json() == _fold(*whole).model_dump_json()


def test_an_attempt_that_failed_is_forgotten_with_the_next_progress(life: Life) -> None:
    """Count, pause and reason belong to a series of failures."""
    training = _fold(*life("r")[:8])
    retry_at = NOON + timedelta(seconds=9)
    failed = _fold(e.AttemptFailed(reason=FAULT, attempt=2, retry_at=retry_at), run=training)
    assert (failed.attempts_failed, failed.due_at, failed.failure, failed.worker) == (2, retry_at, FAULT, None)
    on = _fold(life("r")[8], run=failed)
    assert (on.attempts_failed, on.due_at, on.failure) == (0, None, None)


def test_a_claim_is_no_progress(life: Life) -> None:
    """A worker that crashes on every start uses the attempts up."""
    failed = _fold(e.AttemptFailed(reason=FAULT, attempt=2, retry_at=NOON), run=_fold(*life("r")[:8]))
    claimed = _fold(e.RunClaimed(token=2, worker="w2", lease_s=1), run=failed)
    assert (claimed.attempts_failed, claimed.token, claimed.worker) == (2, 2, "w2")


def test_a_run_that_waits_is_due_by_its_question(life: Life) -> None:
    """Asked for at once, after a fault at its time, and once ingest has accepted at the deadline."""
    asked = _fold(*life("r")[:2])
    assert asked.due_at is None
    retry_at = NOON - timedelta(seconds=5)
    assert _fold(e.AttemptFailed(reason=FAULT, attempt=1, retry_at=retry_at), run=asked).due_at == retry_at
    assert _fold(life("r")[2], run=asked).due_at == NOON


def test_as_many_checkpoints_are_kept_as_a_resume_may_fall_back_to(life: Life) -> None:
    """The newest come last."""
    run = _fold(*life("r")[:7])
    saved = [e.CheckpointSaved(step=step, uri="u", sha256=f"{step}", size_bytes=1) for step in range(9)]
    assert [kept.step for kept in _fold(*saved, run=run).checkpoints] == list(range(9))[-CHECKPOINTS_KEPT:]
