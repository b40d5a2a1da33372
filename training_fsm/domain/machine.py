"""The one transitions table. The diagram, the database's CHECK and every decision come from it."""

from transitions import Machine

from training_fsm.domain import events as e
from training_fsm.domain.errors import TransitionRefused
from training_fsm.domain.run import Run
from training_fsm.domain.states import ENDS, WORK, State

NOT_ENDED = tuple(state for state in State if state not in ENDS and state is not State.NEW)
AWAITING, TRAINING, EVALUATING = State.AWAITING_FEATURES, State.TRAINING, State.EVALUATING

ROWS: tuple[tuple[type[e.Event], tuple[State, ...], State | None], ...] = (
    # event, from, to (None: stays)
    (e.RunRequested, (State.NEW,), State.REQUESTED),
    (e.ParentResolved, (State.REQUESTED,), AWAITING),
    (e.FeaturesLacking, (AWAITING,), None),
    (e.FeaturesRequested, (State.REQUESTED, AWAITING), AWAITING),
    (e.FeatureRequestAnswered, (AWAITING,), None),
    (e.FeaturesReady, (AWAITING,), TRAINING),
    (e.FeaturesReady, (State.FAILED,), None),  # too late, but kept: retry_run uses it
    (e.DeadlinePassed, (AWAITING,), None),
    (e.FeaturesIncomplete, (TRAINING,), AWAITING),
    (e.RunClaimed, (State.REQUESTED, AWAITING, *sorted(WORK)), None),
    (e.DataFrozen, (TRAINING,), None),
    (e.TrainingStarted, (TRAINING,), None),
    (e.TrainingResumed, (TRAINING,), None),
    (e.CheckpointSaved, (TRAINING,), None),
    (e.PauseRequested, (TRAINING,), None),
    (e.RunPaused, (TRAINING,), State.PAUSED),  # the guard: where somebody still wants it
    (e.RunResumed, (State.PAUSED,), TRAINING),
    (e.RunResumed, (TRAINING,), None),  # before the pause began
    (e.RunExtended, (State.REQUESTED, AWAITING, TRAINING, State.PAUSED), None),
    (e.RunExtended, (State.REJECTED,), TRAINING),
    (e.TrainingFinished, (TRAINING,), EVALUATING),  # the guard: not before the last step
    (e.EvaluationFinished, (EVALUATING,), None),
    (e.RegistrationIntended, (EVALUATING,), None),
    (e.ModelRegistered, (EVALUATING,), State.REGISTERED),
    (e.ModelRejected, (EVALUATING,), State.REJECTED),
    (e.RejectionOverridden, (State.REJECTED,), EVALUATING),
    (e.ArtifactsReleased, (TRAINING, State.PAUSED, EVALUATING, *sorted(ENDS)), None),
    (e.AttemptFailed, (State.REQUESTED, AWAITING, TRAINING, EVALUATING), None),
    (e.RunFailed, NOT_ENDED, State.FAILED),
    (e.RunCancelled, NOT_ENDED, State.CANCELLED),
    (e.RunRetried, (State.FAILED,), State.REQUESTED),  # the guard: back to the state it failed in
    (e.RunRetried, (State.FAILED,), AWAITING),
    (e.RunRetried, (State.FAILED,), TRAINING),
    (e.RunRetried, (State.FAILED,), EVALUATING),
)

MACHINE = Machine(
    model=None,
    states=[state.value for state in State],
    initial=State.NEW.value,
    auto_transitions=False,
    transitions=[
        {"trigger": event.type(), "source": source.value, "dest": (to or source).value}
        for event, sources, to in ROWS
        for source in sources
    ],
)

# The machine compiled: asked for every event of every run, where its triggers would cost forty times as much.
_ARROWS: dict[tuple[State, str], tuple[State, ...]] = {
    (State(source), trigger): tuple(State(str(arrow.dest)) for arrow in arrows)
    for trigger, event in MACHINE.events.items()
    for source, arrows in event.transitions.items()
}


def arrows() -> tuple[tuple[State, str, State], ...]:
    """All (from, event type, to), sorted; what the database accepts for runs."""
    return tuple(sorted((source, event, dest) for (source, event), dests in _ARROWS.items() for dest in dests))


def destination(run: Run | None, event: e.Event) -> State:
    """The state after this event. Raises TransitionRefused where there is no such arrow."""
    source = State.NEW if run is None else run.state
    dests = _ARROWS.get((source, event.type()), ())
    if isinstance(event, e.RunRetried):
        dests = tuple(dest for dest in dests if run is not None and dest is run.failed_from)
    if isinstance(event, e.TrainingFinished) and run is not None and event.steps < (run.last_step or 0):
        raise TransitionRefused(f"{event.type()} after {event.steps} steps: the run goes on to {run.last_step}")
    if not dests:
        raise TransitionRefused(f"{event.type()} does not fit a run in {source.value}")
    if isinstance(event, e.RunFailed) and event.failed_from is not source:
        raise TransitionRefused(f"{event.type()} in {event.failed_from.value}: the run is in {source.value} by now")
    if isinstance(event, e.RunPaused) and run is not None and run.pause is None:
        raise TransitionRefused(f"{event.type()}: nobody wants the run to pause any more")
    return dests[0]
