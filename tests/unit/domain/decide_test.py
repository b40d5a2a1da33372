"""Decisions, read as given(events).when(command).then(events)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from training_fsm.domain import events as e
from training_fsm.domain.commands import (
    COMMAND_TYPES,
    CancelRun,
    Command,
    ExtendRun,
    OverrideRejection,
    PauseRun,
    RequestTraining,
    ResumeRun,
    RetryRun,
)
from training_fsm.domain.decide import (
    Refusal,
    answered,
    deadline_passed,
    decide,
    failed,
    feature_request_id,
    hear,
    incomplete,
    last_look,
    looked_up,
    overdue,
)
from training_fsm.domain.errors import TransitionRefused
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import Failure
from training_fsm.domain.machine import destination
from training_fsm.domain.notifications import Notification, PreprocessCompleted, PreprocessFailed
from training_fsm.domain.policy import Policy
from training_fsm.domain.run import Run
from training_fsm.domain.states import ENDS, State
from training_fsm.domain.timeframe import TimeRange

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
POLICY = Policy(features_deadline_s=3600, attempts_max=3, backoff_first_s=2, backoff_max_s=60)
DEADLINE = NOON + timedelta(seconds=3600)
RUN_ID = "r"
FIRST, SECOND = feature_request_id(RUN_ID, 1), feature_request_id(RUN_ID, 2)
AWAY = Failure(kind="ingest_unavailable", words="no connection", service="ingest")

PART = TimeRange(start="2018-01-01T00:00:00Z", end="2018-02-01T00:00:00Z")
WANTED, STANDS = e.PauseRequested(actor="a", why="w"), e.RunPaused(actor="a", why="w", step=10_240)
PAUSE, RESUME = PauseRun(run_id=RUN_ID, actor="a", why="w"), ResumeRun(run_id=RUN_ID, actor="a", why="w")
EXTEND = ExtendRun(run_id=RUN_ID, additional_timesteps=100, actor="a", why="w")
OVERRIDE = OverrideRejection(run_id=RUN_ID, actor="a", why="w")
EXTENSIBLE = {State.REQUESTED, State.AWAITING_FEATURES, State.TRAINING, State.PAUSED, State.REJECTED}

Life = Callable[[str], tuple[e.Event, ...]]


def fold(events: tuple[e.Event, ...]) -> Run | None:
    """Each event through the machine and into the run."""
    run: Run | None = None
    for event in events:
        run = evolve(run, RUN_ID, event, destination(run, event))
    return run


@dataclass(frozen=True)
class Given:
    """A run's history; `when` asks for what follows."""

    events: tuple[e.Event, ...]

    @property
    def run(self) -> Run:
        run = fold(self.events)
        assert run is not None
        return run

    def when(self, wish: Command | Notification) -> "Then":
        if isinstance(wish, Command):
            return Then(self.events, decide(fold(self.events), wish, NOON, POLICY))
        return Then(self.events, hear(self.run, wish))


@dataclass(frozen=True)
class Then:
    """What followed."""

    given: tuple[e.Event, ...]
    outcome: tuple[e.Event, ...] | Refusal

    def then(self, *events: e.Event) -> Run | None:
        assert self.outcome == events
        return fold((*self.given, *events))

    def refused(self, words: str) -> None:
        assert isinstance(self.outcome, Refusal)
        assert words in self.outcome.reason


def given(*events: e.Event) -> Given:
    """A run with these events, or none yet."""
    return Given(events)


@pytest.fixture
def histories(life: Life) -> dict[State, tuple[e.Event, ...]]:
    """A history that ends in each state."""
    whole = life(RUN_ID)
    return {
        State.NEW: (),
        State.REQUESTED: whole[:1],
        State.AWAITING_FEATURES: whole[:2],
        State.TRAINING: whole[:9],
        State.PAUSED: (*whole[:9], WANTED, STANDS),
        State.EVALUATING: whole[:11],
        State.REGISTERED: whole,
        State.REJECTED: (*whole[:11], e.ModelRejected(failed=("sharpe",))),
        State.FAILED: (*whole[:2], e.RunFailed(reason=AWAY, failed_from=State.AWAITING_FEATURES)),
        State.CANCELLED: (*whole[:2], e.RunCancelled(actor="a", why="w")),
    }


@pytest.fixture
def request_training(life: Life) -> RequestTraining:
    """The command that the run's life begins with."""
    requested = life(RUN_ID)[0]
    assert isinstance(requested, e.RunRequested)
    return RequestTraining(run_id=RUN_ID, request=requested.request)


CANCEL, RETRY = CancelRun(run_id=RUN_ID, actor="a", why="w"), RetryRun(run_id=RUN_ID, actor="a", why="w")
COMPLETED = PreprocessCompleted(request_id=FIRST, total_features_computed=6, success_details={"features_4h": 6})
READY = e.FeaturesReady(request_id=FIRST, total_features_computed=6, success_details={"features_4h": 6})
BROKEN = PreprocessFailed(request_id=FIRST, error="preprocessing_error", words="no data", detail="failed_step: warmup")


def test_a_request_makes_a_run_that_asks_for_features(request_training: RequestTraining) -> None:
    """Both events come from one decision, with the deadline that the policy sets."""
    request = request_training.request
    run = (
        given()
        .when(request_training)
        .then(
            e.RunRequested(request=request, feature_config=request.features.versioned(NOON)),
            e.FeaturesRequested(request_id=FIRST, attempt=1, deadline=DEADLINE),
        )
    )
    assert run is not None
    assert (run.state, run.version) == (State.AWAITING_FEATURES, 2)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("command_type", list(COMMAND_TYPES))
def test_every_command_in_every_state_is_obeyed_or_refused_with_a_reason(
    state: State,
    command_type: str,
    histories: dict[State, tuple[e.Event, ...]],
    request_training: RequestTraining,
) -> None:
    """What is obeyed goes through the machine; what is refused says in which state the run is."""
    command = {c.type: c for c in (CANCEL, RETRY, PAUSE, RESUME, EXTEND, OVERRIDE, request_training)}[command_type]
    then = Given(histories[state]).when(command)
    fits = {
        RequestTraining.type: state is State.NEW,
        CancelRun.type: state is not State.NEW and state not in ENDS,
        RetryRun.type: state is State.FAILED,
        PauseRun.type: state is State.TRAINING,
        ResumeRun.type: state is State.PAUSED,
        ExtendRun.type: state in EXTENSIBLE,
        OverrideRejection.type: state is State.REJECTED,
    }[command_type]
    if fits:
        assert isinstance(then.outcome, tuple)
        assert then.then(*then.outcome) is not None
    else:
        then.refused("there is no run r" if state is State.NEW else state.value)


@pytest.mark.parametrize("state", [state for state in State if state is not State.NEW])
@pytest.mark.parametrize("news", [COMPLETED, BROKEN], ids=["completed", "failed"])
def test_every_notification_in_every_state_moves_the_run_or_nothing(
    state: State, news: Notification, histories: dict[State, tuple[e.Event, ...]]
) -> None:
    """Only a run that waits is moved; a completion that comes too late is kept by a failed one."""
    then = Given(histories[state]).when(news)
    if state is State.AWAITING_FEATURES:
        assert isinstance(then.outcome, tuple)
        run = then.then(*then.outcome)
        assert run is not None
        assert run.state is (State.TRAINING if news is COMPLETED else State.FAILED)
    elif state is State.FAILED and news is COMPLETED:
        run = then.then(READY)
        assert run is not None
        assert (run.state, run.features_ready, run.failure) == (State.FAILED, READY, AWAY)
    else:
        then.then()


@pytest.mark.parametrize("news", [COMPLETED, BROKEN], ids=["completed", "failed"])
def test_news_for_another_request_are_not_heard(
    news: Notification, histories: dict[State, tuple[e.Event, ...]]
) -> None:
    """The request id is the only link."""
    stranger = news.model_copy(update={"request_id": SECOND})
    Given(histories[State.AWAITING_FEATURES]).when(stranger).then()
    Given(histories[State.REQUESTED]).when(stranger).then()


def test_a_failure_of_preprocess_fails_the_run_in_its_words(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """Service, kind of error and detail are kept beside them."""
    reason = Failure(
        kind="preprocess_failed",
        words="no data",
        service="preprocess",
        field="preprocessing_error",
        detail="failed_step: warmup",
    )
    failure = e.RunFailed(reason=reason, failed_from=State.AWAITING_FEATURES)
    Given(histories[State.AWAITING_FEATURES]).when(BROKEN).then(failure)


def test_retry_asks_again_under_a_new_id(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """A run that failed for want of features goes back to waiting, as attempt two."""
    run = (
        Given(histories[State.FAILED])
        .when(RETRY)
        .then(
            e.RunRetried(actor="a", why="w"),
            e.FeaturesRequested(request_id=SECOND, attempt=2, deadline=DEADLINE),
        )
    )
    assert run is not None
    assert (run.state, run.failure, run.failed_from, run.attempts_failed) == (State.AWAITING_FEATURES, None, None, 0)


def test_retry_uses_the_completion_that_came_too_late(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """Recorded in FAILED, it leads straight to TRAINING; a second one is not recorded again."""
    late = Given((*histories[State.FAILED], READY))
    late.when(COMPLETED).then()
    run = late.when(RETRY).then(e.RunRetried(actor="a", why="w"), READY)
    assert run is not None
    assert run.state is State.TRAINING


@pytest.mark.parametrize("state", [State.TRAINING, State.EVALUATING])
def test_retry_goes_back_to_where_the_run_failed(state: State, histories: dict[State, tuple[e.Event, ...]]) -> None:
    """Work that failed is taken up again, with what it had reached."""
    crashed = Failure(kind="worker_crashed", words="killed by signal 9")
    before = Given(histories[state]).run
    failure = e.RunFailed(reason=crashed, failed_from=state)
    run = Given((*histories[state], failure)).when(RETRY).then(e.RunRetried(actor="a", why="w"))
    assert run is not None
    assert (run.state, run.checkpoints, run.failure) == (state, before.checkpoints, None)


def test_retry_where_no_way_leads_back_is_refused(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """Old history may have failed in a state that the machine does not lead back to."""
    failure = e.RunFailed(reason=AWAY, failed_from=State.REJECTED)
    run = evolve(given(*histories[State.REQUESTED]).run, RUN_ID, failure, State.FAILED)
    refusal = decide(run, RETRY, NOON, POLICY)
    assert isinstance(refusal, Refusal)
    assert "no way back to REJECTED" in refusal.reason


def test_a_retry_before_anything_was_asked_asks_ingest(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """From scratch there is no look-up that a worker could begin with."""
    failure = e.RunFailed(reason=AWAY, failed_from=State.REQUESTED)
    asked = e.FeaturesRequested(request_id=FIRST, attempt=1, deadline=DEADLINE)
    Given((*histories[State.REQUESTED], failure)).when(RETRY).then(e.RunRetried(actor="a", why="w"), asked)


def test_an_answer_of_ingest_is_recorded_once(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """Not for another question, not twice, not once preprocess was quicker."""
    waiting = Given(histories[State.AWAITING_FEATURES])
    answer = e.FeatureRequestAnswered(request_id=FIRST, status=202, words="ok")
    assert answered(waiting.run, FIRST, 202, "ok") == (answer,)
    assert answered(waiting.run, SECOND, 202, "ok") == ()
    assert answered(Given((*waiting.events, answer)).run, FIRST, 202, "ok") == ()
    assert answered(Given(histories[State.TRAINING]).run, FIRST, 202, "ok") == ()


def test_a_deadline_names_who_did_not_answer(life: Life) -> None:
    """Before ingest's answer it is ingest, with its last words; after it preprocess."""
    asked = (life(RUN_ID)[0], e.FeaturesRequested(request_id=FIRST, attempt=1, deadline=DEADLINE))
    tried = e.AttemptFailed(reason=AWAY, attempt=1, retry_at=NOON)
    run = given(*asked, tried).run
    assert not deadline_passed(run, DEADLINE - timedelta(microseconds=1))
    assert deadline_passed(run, DEADLINE)
    passed = e.DeadlinePassed(request_id=FIRST)
    assert overdue(run) == (passed,)
    [unasked] = last_look(given(*asked, tried, passed).run, "service", (PART,))
    assert isinstance(unasked, e.RunFailed)
    assert (unasked.reason.kind, unasked.reason.service, unasked.reason.detail) == (
        "ingest_unavailable",
        "ingest",
        "no connection",
    )
    accepted = given(*asked, tried, e.FeatureRequestAnswered(request_id=FIRST, status=202, words="ok"), passed).run
    [silent] = last_look(accepted, "service", (PART,))
    assert isinstance(silent, e.RunFailed)
    assert (silent.reason.kind, silent.reason.service) == ("deadline", "preprocess")
    assert silent.reason.detail == "service lacks 2018-01-01T00:00:00+00:00 to 2018-02-01T00:00:00+00:00"
    assert fold((*asked, passed, silent)) is not None


def test_after_the_deadline_a_worker_looks_once_more(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """Not the orchestrator again; preprocess's message still counts, and features that are there let the run train."""
    late = Given((*histories[State.AWAITING_FEATURES], e.DeadlinePassed(request_id=FIRST)))
    assert late.run.claimable
    assert not deadline_passed(late.run, DEADLINE + timedelta(days=1))
    late.when(COMPLETED).then(READY)
    found = e.FeaturesReady(request_id=e.FOUND_IN_FEAST, total_features_computed=0, success_details={})
    assert last_look(late.run, "service", ()) == (found,)


def test_lacking_features_are_asked_for_once_more_only_where_the_operator_says_so(
    histories: dict[State, tuple[e.Event, ...]],
) -> None:
    """A backfill destroys other configurations' columns: never by default, and never twice."""
    training = given(*histories[State.TRAINING])
    reason = Failure(kind="features_missing", words="no rows", service="s", field="f", range="r")
    ended = (e.RunFailed(reason=reason, failed_from=State.TRAINING),)
    assert incomplete(training.run, reason, NOON, POLICY) == ended
    refilling = POLICY.model_copy(update={"refill": "backfill"})
    lacks = e.FeaturesIncomplete(service="s", field="f", range="r", words="no rows")
    again = e.FeaturesRequested(request_id=SECOND, attempt=2, deadline=DEADLINE, context="backfill")
    assert incomplete(training.run, reason, NOON, refilling) == (lacks, again)
    ready = READY.model_copy(update={"request_id": SECOND})
    refilled = given(*training.events, lacks, again, ready).run
    assert (refilled.state, refilled.worker) == (State.TRAINING, None)
    assert incomplete(refilled, reason, NOON, refilling) == ended


def test_a_pause_is_a_wish_until_the_worker_stands_at_a_checkpoint(
    histories: dict[State, tuple[e.Event, ...]],
) -> None:
    """It can be taken back, it is moot where the training ended first, and wanting it twice is refused."""
    run = Given(histories[State.TRAINING]).when(PAUSE).then(WANTED)
    assert run is not None
    assert (run.state, run.pause) == (State.TRAINING, WANTED)
    wanted = Given((*histories[State.TRAINING], WANTED))
    wanted.when(PAUSE).refused("about to pause already")
    run = wanted.when(RESUME).then(e.RunResumed(actor="a", why="w"))
    assert run is not None
    assert (run.state, run.pause) == (State.TRAINING, None)
    with pytest.raises(TransitionRefused, match="nobody wants"):
        destination(run, STANDS)
    finished = next(event for event in histories[State.EVALUATING] if isinstance(event, e.TrainingFinished))
    assert given(*wanted.events, finished).run.pause is None
    paused = given(*histories[State.PAUSED]).run
    assert (paused.state, paused.pause, paused.worker, paused.claimable) == (State.PAUSED, None, None, False)
    resumed = given(*histories[State.PAUSED], e.RunResumed(actor="a", why="w")).run
    assert (resumed.state, resumed.claimable, resumed.attempts_failed) == (State.TRAINING, True, 0)


@pytest.mark.parametrize(
    "end",
    [
        e.RunCancelled(actor="a", why="w"),
        e.RunFailed(reason=AWAY, failed_from=State.TRAINING),
        e.FeaturesIncomplete(service="s", field="f", range=None, words="w"),
    ],
    ids=lambda event: event.type(),
)
def test_a_pause_that_is_wanted_is_over_with_the_training(
    end: e.Event, histories: dict[State, tuple[e.Event, ...]]
) -> None:
    """There is nothing to take back, and a retry trains instead of pausing at once."""
    after = Given((*histories[State.TRAINING], WANTED, end))
    assert after.run.pause is None
    after.when(RESUME).refused("expected PAUSED")


def test_a_failure_that_was_decided_in_another_state_is_none(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """The last look found nothing, and the completion came while it looked: the run trains."""
    passed = Given((*histories[State.AWAITING_FEATURES], e.DeadlinePassed(request_id=FIRST)))
    [failure] = last_look(passed.run, "service", (PART,))
    training = passed.when(COMPLETED)
    assert isinstance(training.outcome, tuple)
    with pytest.raises(TransitionRefused, match="run is in TRAINING by now"):
        fold((*training.given, *training.outcome, failure))


def test_asking_in_vain_does_not_count_against_the_last_look(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """An outage of ingest until the deadline leaves the look all of its own attempts."""
    run = given(*histories[State.AWAITING_FEATURES]).run
    for _ in range(POLICY.attempts_max + 2):
        (tried,) = failed(run, AWAY, passing=True, now=NOON, policy=POLICY, jitter=0.0)
        run = evolve(run, RUN_ID, tried, destination(run, tried))
    run = evolve(run, RUN_ID, e.DeadlinePassed(request_id=FIRST), run.state)
    assert (run.looks_up, run.attempts_failed, run.failure) == (True, 0, AWAY)


def test_more_steps_are_counted_in_whole_rollouts_with_those_of_the_request(
    histories: dict[State, tuple[e.Event, ...]],
) -> None:
    """Extensions add up; a training that ended meanwhile by the old total goes on."""
    before = Given(histories[State.TRAINING])
    last = before.run.last_step
    assert last == 10_240, "10,000 in rollouts of 2,048"
    extended = e.RunExtended(additional_timesteps=100, actor="a", why="w")
    run = before.when(EXTEND).then(extended)
    assert run is not None
    assert run.last_step == 12_288, "at least one rollout more"
    assert given(*before.events, extended, extended, extended).run.last_step == 12_288
    with pytest.raises(TransitionRefused, match="the run goes on to 12288"):
        destination(run, e.TrainingFinished(checkpoint="c", steps=last))
    assert destination(run, e.TrainingFinished(checkpoint="c", steps=12_288)) is State.EVALUATING


def test_a_rejected_run_that_is_extended_is_judged_again(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """It trains on from its last checkpoint; what its first evaluation said is no more than history."""
    run = (
        Given(histories[State.REJECTED]).when(EXTEND).then(e.RunExtended(additional_timesteps=100, actor="a", why="w"))
    )
    assert run is not None
    assert (run.state, run.evaluation, run.claimable) == (State.TRAINING, None, True)
    assert run.checkpoints


def test_an_overridden_rejection_is_registered_with_its_evaluation(
    histories: dict[State, tuple[e.Event, ...]],
) -> None:
    """Who did so and why stays with the run."""
    overridden = e.RejectionOverridden(actor="a", why="w")
    run = Given(histories[State.REJECTED]).when(OVERRIDE).then(overridden)
    assert run is not None
    assert (run.state, run.overridden, run.claimable) == (State.EVALUATING, overridden, True)
    assert run.evaluation is not None


@pytest.mark.parametrize(
    ("state", "command"), [(State.FAILED, RETRY), (State.REJECTED, EXTEND), (State.REJECTED, OVERRIDE)]
)
def test_nothing_revives_a_run_whose_files_were_released(
    state: State, command: Command, histories: dict[State, tuple[e.Event, ...]]
) -> None:
    """Its data or its last checkpoint may be gone; other files do not matter."""
    whole = histories[State.REJECTED]
    failure = e.RunFailed(reason=AWAY, failed_from=State.TRAINING)
    history = whole if state is State.REJECTED else (*histories[State.TRAINING], failure)
    data = next(event for event in whole if isinstance(event, e.DataFrozen)).artifact
    other = data.model_copy(update={"uri": "runs:/tracking-1/checkpoints/older"})
    kept = Given((*history, e.ArtifactsReleased(artifacts=(other,), why="retention")))
    assert not isinstance(kept.when(command).outcome, Refusal)
    Given((*history, e.ArtifactsReleased(artifacts=(other, data), why="retention"))).when(command).refused(
        "files were released"
    )


def test_released_files_change_nothing_else(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """A run that has ended stays as it ended."""
    run = given(*histories[State.CANCELLED]).run
    after = given(*histories[State.CANCELLED], e.ArtifactsReleased(artifacts=(), why="retention")).run
    assert after == run.model_copy(update={"version": run.version + 1})


def test_a_run_past_waiting_has_no_deadline(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """The question of a run in TRAINING is answered, whenever it was due."""
    for state in (State.REQUESTED, State.TRAINING, State.CANCELLED):
        assert not deadline_passed(Given(histories[state]).run, DEADLINE + timedelta(days=1))


def test_a_passing_fault_is_tried_again_until_the_attempts_are_used_up(
    histories: dict[State, tuple[e.Event, ...]],
) -> None:
    """Progress between two faults starts the count anew."""
    training = histories[State.TRAINING]
    fault = Failure(kind="outside_unavailable", words="mlflow is away")

    def next_after(*events: e.Event) -> tuple[e.Event, ...]:
        return failed(given(*events).run, fault, passing=True, now=NOON, policy=POLICY, jitter=0)

    first = next_after(*training)
    assert first == (e.AttemptFailed(reason=fault, attempt=1, retry_at=NOON + timedelta(seconds=1)),)
    second = next_after(*training, *first)
    assert second == (e.AttemptFailed(reason=fault, attempt=2, retry_at=NOON + timedelta(seconds=2)),)
    assert next_after(*training, *first, *second) == (e.RunFailed(reason=fault, failed_from=State.TRAINING),)
    progress = training[7]
    assert isinstance(progress, e.CheckpointSaved)
    assert next_after(*training, *first, *second, progress) == first


def test_a_fault_that_does_not_pass_fails_the_run_at_once(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """No attempt is spent on what cannot change."""
    for state in (State.AWAITING_FEATURES, State.TRAINING, State.EVALUATING):
        run = Given(histories[state]).run
        assert failed(run, AWAY, passing=False, now=NOON, policy=POLICY, jitter=0) == (
            e.RunFailed(reason=AWAY, failed_from=state),
        )


def test_asking_ingest_is_bounded_by_the_deadline_alone(life: Life) -> None:
    """However many attempts failed, the next one comes no later than the deadline."""
    asked = (life(RUN_ID)[0], e.FeaturesRequested(request_id=FIRST, attempt=1, deadline=NOON + timedelta(seconds=45)))
    tried = e.AttemptFailed(reason=AWAY, attempt=40, retry_at=NOON)
    [again] = failed(given(*asked, tried).run, AWAY, passing=True, now=NOON, policy=POLICY, jitter=1)
    assert again == e.AttemptFailed(reason=AWAY, attempt=41, retry_at=NOON + timedelta(seconds=45))


def test_a_command_without_a_decision_is_a_fault_of_ours(histories: dict[State, tuple[e.Event, ...]]) -> None:
    """A command type that nobody decides must not pass as a refusal."""
    with pytest.raises(TypeError, match="no decision for Command"):
        decide(Given(histories[State.TRAINING]).run, Command(run_id=RUN_ID), NOON, POLICY)


ContinuedLife = Callable[[str, bool], tuple[e.Event, ...]]
EARLIER = TimeRange(start="2016-06-01T00:00:00Z", end="2017-01-01T00:00:00Z")


def test_a_released_parent_revives_nothing_that_has_not_begun(continued_life: ContinuedLife) -> None:
    """The copy of a plain zip that a run was to continue belongs to the run alone."""
    before = continued_life(RUN_ID, False)[:3]
    failure = e.RunFailed(reason=AWAY, failed_from=State.AWAITING_FEATURES)
    parent = given(*before).run.parent
    assert parent is not None
    released = e.ArtifactsReleased(artifacts=(parent.checkpoint,), why="retention")
    given(*before, failure, released).when(RETRY).refused("files were released")


def test_a_request_to_continue_waits_for_a_worker(continued_life: ContinuedLife) -> None:
    """Nobody is asked for features before the parent is known."""
    requested = continued_life(RUN_ID, False)[0]
    assert isinstance(requested, e.RunRequested)
    run = given().when(RequestTraining(run_id=RUN_ID, request=requested.request)).then(requested)
    assert run is not None
    assert (run.state, run.claimable, run.request, run.model) == (State.REQUESTED, True, None, "eurusd-ppo")


def test_a_continued_run_is_a_worker_s_until_it_asks(continued_life: ContinuedLife) -> None:
    """To find its parent, to look into Feast, and again once it can train; not while preprocess is waited for."""
    whole = continued_life(RUN_ID, True)
    claimable = [given(*whole[: upto + 1]).run.claimable for upto in range(len(whole))]
    first = {type(event): number for number, event in reversed(list(enumerate(whole)))}
    asking, ready, done = first[e.FeaturesRequested], first[e.FeaturesReady], first[e.ModelRegistered]
    assert claimable == [not asking <= number < ready and number < done for number in range(len(whole))]


def test_asking_gives_the_run_back(continued_life: ContinuedLife) -> None:
    """The worker that looked things up is not one that died with the run."""
    whole = continued_life(RUN_ID, True)
    run = given(*whole).run
    assert run.attempts_failed == 0
    assert run.first_step == 10_240
    assert run.last_step == 20_480


def test_a_look_into_feast_finds_all_or_asks_for_what_is_lacking(continued_life: ContinuedLife) -> None:
    """One question to ingest, from the first lacking bar to the last."""
    run = given(*continued_life(RUN_ID, False)[:3]).run
    ready = e.FeaturesReady(request_id=e.FOUND_IN_FEAST, total_features_computed=0, success_details={})
    assert looked_up(run, "service", (), NOON, POLICY) == (ready,)
    whole = TimeRange(start=EARLIER.start, end=PART.end)
    assert looked_up(run, "service", (PART, EARLIER), NOON, POLICY) == (
        e.FeaturesLacking(service="service", ranges=(PART, EARLIER)),
        e.FeaturesRequested(request_id=FIRST, attempt=1, deadline=DEADLINE, range=whole),
    )


def test_a_retry_of_a_continued_run_goes_on_with_what_it_was_at(continued_life: ContinuedLife) -> None:
    """The parent, Feast, or the range that was lacking."""
    whole = continued_life(RUN_ID, True)
    retried = e.RunRetried(actor="a", why="w")

    def failed_after(count: int) -> Given:
        before = given(*whole[:count])
        return Given((*before.events, e.RunFailed(reason=AWAY, failed_from=before.run.state)))

    run = failed_after(2).when(RETRY).then(retried)
    assert run is not None
    assert (run.state, run.claimable) == (State.REQUESTED, True)
    run = failed_after(3).when(RETRY).then(retried)
    assert run is not None
    assert (run.state, run.claimable) == (State.AWAITING_FEATURES, True)
    asked = next(event for event in whole if isinstance(event, e.FeaturesRequested))
    again = asked.model_copy(update={"request_id": SECOND, "attempt": 2, "deadline": DEADLINE})
    run = failed_after(5).when(RETRY).then(retried, again)
    assert run is not None
    assert not run.claimable


def test_failures_of_a_look_up_are_bounded(continued_life: ContinuedLife) -> None:
    """There is no deadline that would end them."""
    for count in (2, 3):
        run = given(*continued_life(RUN_ID, False)[:count]).run.model_copy(update={"attempts_failed": 2})
        outcome = failed(run, AWAY, passing=True, now=NOON, policy=POLICY, jitter=0.0)
        assert outcome == (e.RunFailed(reason=AWAY, failed_from=run.state),)
