"""Run + wish or news -> events. Pure: time, ids and jitter come in with the call."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID, uuid5

from training_fsm.domain import events as e
from training_fsm.domain.commands import (
    CancelRun,
    Command,
    ExtendRun,
    OverrideRejection,
    PauseRun,
    RequestTraining,
    ResumeRun,
    RetryRun,
)
from training_fsm.domain.errors import TransitionRefused
from training_fsm.domain.facts import Failure
from training_fsm.domain.machine import destination
from training_fsm.domain.notifications import Notification, PreprocessCompleted, PreprocessFailed
from training_fsm.domain.policy import Policy
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import TimeRange

# Never change it: ids of runs and of requests to ingest follow from it.
NAMESPACE = UUID("6f1d2b4e-6f0c-5a7e-9d6b-0a1f4c2d8e11")

EVENT_BYTES_MAX = 524_288
"""What one event may hold; the database refuses more, so that no event can block the way out."""

Events = tuple[e.Event, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command makes no sense now, for its sender to read."""

    reason: str


def feature_request_id(run_id: str, attempt: int) -> str:
    """The id under which ingest is asked: the same for the same run and attempt, whoever asks."""
    return str(uuid5(NAMESPACE, f"{run_id}/{attempt}"))


def decide(run: Run | None, command: Command, now: datetime, policy: Policy) -> Events | Refusal:
    """What a command leads to in the run's state."""
    match command:
        case RequestTraining(run_id=run_id, request=request):
            if run is not None:
                return Refusal(f"run_id: {run_id} exists already, in state {run.state.value}")
            whole = request if isinstance(request, TrainingRequest) else None
            config = whole.features.versioned(now) if whole is not None else None
            requested = e.RunRequested(request=request, feature_config=config)
            size = len(requested.model_dump_json().encode())
            if size > EVENT_BYTES_MAX:
                words = "feature_definitions counted twice, numbers written out"
                return Refusal(
                    f"request: expected at most {EVENT_BYTES_MAX} bytes with all defaults, {words}; got {size}"
                )
            if whole is None:
                return (requested,)  # a worker looks for the parent first
            return (requested, _ask(run_id, attempt=1, now=now, policy=policy))
        case _ if run is None:
            return Refusal(f"run_id: there is no run {command.run_id}")
        case RetryRun() | ExtendRun() | OverrideRejection() if run.ended and run.files_released:
            return Refusal(f"{command.type}: the run's stored files were released; submit its request again")
        case CancelRun(actor=actor, why=why):
            if run.ended:
                return Refusal(f"cancel_run does not fit a run in {run.state.value}: it has ended")
            return (e.RunCancelled(actor=actor, why=why),)
        case RetryRun(actor=actor, why=why):
            if run.state is not State.FAILED:
                return Refusal(f"retry_run does not fit a run in {run.state.value}: expected FAILED")
            retried = e.RunRetried(actor=actor, why=why)
            try:
                destination(run, retried)
            except TransitionRefused:
                return Refusal(f"retry_run: there is no way back to {run.failed_from}, where the run failed")
            return (retried, *_again(run, now, policy))
        case PauseRun(actor=actor, why=why):
            if run.state is not State.TRAINING:
                return Refusal(f"pause_run does not fit a run in {run.state.value}: expected TRAINING")
            if run.pause is not None:
                return Refusal("pause_run: the run is about to pause already")
            return (e.PauseRequested(actor=actor, why=why),)
        case ResumeRun(actor=actor, why=why):
            if run.state is not State.PAUSED and run.pause is None:
                return Refusal(f"resume_run does not fit a run in {run.state.value}: expected PAUSED")
            return (e.RunResumed(actor=actor, why=why),)
        case ExtendRun():
            return _extend(run, command)
        case OverrideRejection(actor=actor, why=why):
            if run.state is not State.REJECTED:
                return Refusal(f"override_rejection does not fit a run in {run.state.value}: expected REJECTED")
            return (e.RejectionOverridden(actor=actor, why=why),)
        case _:
            raise TypeError(f"no decision for {type(command).__name__}")


def _extend(run: Run, command: ExtendRun) -> Events | Refusal:
    extended = e.RunExtended(**command.model_dump(exclude={"run_id"}))
    try:
        destination(run, extended)
    except TransitionRefused:
        hint = "continue its model instead" if run.registered is not None else "its training is over"
        return Refusal(f"extend_run does not fit a run in {run.state.value}: {hint}")
    return (extended,)


def _again(run: Run, now: datetime, policy: Policy) -> Events:
    if run.failed_from is State.REQUESTED and run.continues is None:
        return (_ask(run.run_id, 1, now, policy),)
    if run.failed_from is not State.AWAITING_FEATURES:
        return ()
    if run.features_ready is not None:
        return (run.features_ready,)
    if run.features is None:
        return ()  # a worker looks into Feast again
    return (_ask(run.run_id, run.features.attempt + 1, now, policy, run.features.range),)


def _ask(
    run_id: str, attempt: int, now: datetime, policy: Policy, lacking: TimeRange | None = None
) -> e.FeaturesRequested:
    return e.FeaturesRequested(
        request_id=feature_request_id(run_id, attempt),
        attempt=attempt,
        deadline=now + timedelta(seconds=policy.features_deadline_s),
        range=lacking,
    )


def looked_up(run: Run, service: str, lacking: Sequence[TimeRange], now: datetime, policy: Policy) -> Events:
    """What a look into Feast leads to for a continued run: it can train, or ingest is asked for what is lacking."""
    if not lacking:
        return (_found_in_feast(),)
    whole = TimeRange(start=min(part.start for part in lacking), end=max(part.end for part in lacking))
    return (
        e.FeaturesLacking(service=service, ranges=tuple(lacking)),
        _ask(run.run_id, 1, now, policy, whole),
    )


def _found_in_feast() -> e.FeaturesReady:
    return e.FeaturesReady(request_id=e.FOUND_IN_FEAST, total_features_computed=0, success_details={})


def _shown(ranges: Sequence[TimeRange]) -> str:
    return ", ".join(f"{part.start.isoformat()} to {part.end.isoformat()}" for part in ranges)


def incomplete(run: Run, reason: Failure, now: datetime, policy: Policy) -> Events:
    """What lacking features lead to once they were said to be there: a backfill, once, or the run fails."""
    asked_again = run.features is not None and run.features.context == "backfill"
    if policy.refill == "never" or asked_again:
        return (e.RunFailed(reason=reason, failed_from=run.state),)
    attempt = 1 if run.features is None else run.features.attempt + 1
    lacking = None if run.features is None else run.features.range
    found = e.FeaturesIncomplete(service=reason.service, field=reason.field, range=reason.range, words=reason.words)
    again = _ask(run.run_id, attempt, now, policy, lacking).model_copy(update={"context": "backfill"})
    return (found, again)


def hear(run: Run, news: Notification) -> Events:
    """What preprocess's news lead to; repeats and what comes after its time lead to nothing."""
    if run.features is None or run.features.request_id != news.request_id:
        return ()
    match news:
        case PreprocessCompleted():
            late = run.state is State.FAILED and run.features_ready is None
            if run.state is not State.AWAITING_FEATURES and not late:
                return ()
            ready = e.FeaturesReady(
                request_id=news.request_id,
                total_features_computed=news.total_features_computed,
                success_details=news.success_details,
            )
            return (ready,)
        case PreprocessFailed():
            if run.state is not State.AWAITING_FEATURES:
                return ()
            reason = Failure(
                kind="preprocess_failed", words=news.words, service="preprocess", field=news.error, detail=news.detail
            )
            return (e.RunFailed(reason=reason, failed_from=run.state),)
        case _:
            assert_never(news)


def answered(run: Run, request_id: str, status: int, words: str) -> Events:
    """Ingest accepted; nothing where preprocess was quicker."""
    if run.state is not State.AWAITING_FEATURES or run.features is None or run.features.request_id != request_id:
        return ()
    if run.features.accepted:
        return ()
    return (e.FeatureRequestAnswered(request_id=request_id, status=status, words=words),)


def deadline_passed(run: Run, now: datetime) -> bool:
    """Whether a run has waited for its features for too long."""
    if run.state is not State.AWAITING_FEATURES or run.features is None or run.features.overdue:
        return False
    return now >= run.features.deadline


def overdue(run: Run) -> Events:
    """The deadline for features passed: a worker is to look into the feature store before the run fails."""
    assert run.features is not None, "only a question has a deadline"
    return (e.DeadlinePassed(request_id=run.features.request_id),)


def last_look(run: Run, service: str, lacking: Sequence[TimeRange]) -> Events:
    """What the look after the deadline leads to: the features are there although nobody said so, or the run fails."""
    assert run.features is not None, "only a question has a deadline"
    if not lacking:
        return (_found_in_feast(),)
    if run.features.accepted:
        words = "preprocess did not report the features before the deadline"
    else:
        words = "ingest could not be asked for features before the deadline"
    last = run.failure.words if run.failure is not None and not run.features.accepted else None
    reason = Failure(
        kind="deadline" if run.features.accepted else "ingest_unavailable",
        words=words,
        service="preprocess" if run.features.accepted else "ingest",
        range=f"until {run.features.deadline.isoformat()}",
        detail=last or f"{service} lacks {_shown(lacking)}",
    )
    return (e.RunFailed(reason=reason, failed_from=run.state),)


def failed(run: Run, reason: Failure, *, passing: bool, now: datetime, policy: Policy, jitter: float) -> Events:
    """A passing fault is tried again with backoff, any other fails the run.

    While features are asked for, the deadline alone bounds the attempts.
    """
    attempt = run.attempts_failed + 1
    bounded = run.state is not State.AWAITING_FEATURES or run.looks_up
    if not passing or (bounded and attempt >= policy.attempts_max):
        return (e.RunFailed(reason=reason, failed_from=run.state),)
    retry_at = policy.retry_at(now, attempt, jitter)
    if not bounded and run.features is not None:
        retry_at = min(retry_at, run.features.deadline)
    return (e.AttemptFailed(reason=reason, attempt=attempt, retry_at=retry_at),)
