"""The transitions table, and what is derived from it."""

from collections.abc import Callable

import pytest
from transitions.extensions import GraphMachine

from training_fsm.domain import events as e
from training_fsm.domain.decide import feature_request_id
from training_fsm.domain.errors import TransitionRefused
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import Failure
from training_fsm.domain.machine import MACHINE, ROWS, arrows, destination
from training_fsm.domain.run import Run
from training_fsm.domain.states import ENDS, State

Life = Callable[[str], tuple[e.Event, ...]]
FAILURE = Failure(kind="worker_crashed", words="killed")
STREAMS_OF_THEIR_OWN = {e.ChampionPromoted, e.CommandRefused, e.LogRestored, e.MessageDeadLettered}


def _after(events: tuple[e.Event, ...]) -> Run | None:
    run: Run | None = None
    for event in events:
        run = evolve(run, "r", event, destination(run, event))
    return run


@pytest.fixture
def event_of(life: Life, continued_life: Callable[[str, bool], tuple[e.Event, ...]]) -> dict[type[e.Event], e.Event]:
    """One event of each type that a run can have."""
    asked = feature_request_id("r", 1)
    more = (
        e.FeaturesRequested(request_id=asked, attempt=1, deadline="2026-11-24T12:00:00Z"),
        e.TrainingResumed(
            token=1, step=2048, checkpoint="a" * 64, fidelity="exact", fingerprint=_started(life).fingerprint
        ),
        e.ModelRejected(failed=("sharpe",)),
        e.AttemptFailed(reason=FAILURE, attempt=1, retry_at="2026-11-24T12:00:00Z"),
        e.RunFailed(reason=FAILURE, failed_from=State.TRAINING),
        e.RunCancelled(actor="a", why="w"),
        e.RunRetried(actor="a", why="w"),
        e.FeaturesIncomplete(service="s", field="f", range="r", words="w"),
        e.DeadlinePassed(request_id=asked),
        e.PauseRequested(actor="a", why="w"),
        e.RunPaused(actor="a", why="w", step=2048),
        e.RunResumed(actor="a", why="w"),
        e.RunExtended(additional_timesteps=1, actor="a", why="w"),
        e.RejectionOverridden(actor="a", why="w"),
        e.ArtifactsReleased(artifacts=(), why="w"),
    )
    return {type(event): event for event in (*continued_life("r", True), *life("r"), *more)}


def _started(life: Life) -> e.TrainingStarted:
    return next(event for event in life("r") if isinstance(event, e.TrainingStarted))


def _run_in(state: State, life: Life) -> Run | None:
    run = _after(life("r")[:4])
    assert run is not None
    if state is State.NEW:
        return None
    wanted = e.PauseRequested(actor="a", why="w") if state is State.TRAINING else None
    return run.model_copy(update={"state": state, "failed_from": State.TRAINING, "pause": wanted})


@pytest.mark.parametrize("state", list(State))
def test_every_event_in_every_state_leads_where_the_table_says_or_is_refused(
    state: State, life: Life, event_of: dict[type[e.Event], e.Event]
) -> None:
    """The compiled table, asked for every pair, is the one that is written down."""
    assert event_of.keys() == set(e.EVENT_TYPES.values()) - STREAMS_OF_THEIR_OWN
    run = _run_in(state, life)
    event_of[e.RunFailed] = e.RunFailed(reason=FAILURE, failed_from=state)
    for kind, event in event_of.items():
        dests = [to or state for row, sources, to in ROWS if row is kind and state in sources]
        if not dests:
            with pytest.raises(TransitionRefused, match=f"^{kind.type()} does not fit a run in {state.value}$"):
                destination(run, event)
        elif kind is e.RunRetried:
            assert destination(run, event) is State.TRAINING
        else:
            assert [destination(run, event)] == dests


def test_only_a_retry_has_more_than_one_arrow_from_a_state() -> None:
    """Everything else is decided by state and event alone."""
    pairs = [(source, event) for source, event, _ in arrows()]
    assert {event for source, event in pairs if pairs.count((source, event)) > 1} == {e.RunRetried.type()}


def test_nothing_leaves_an_end_but_what_revives_it() -> None:
    """REGISTERED and CANCELLED are final; FAILED can be retried, REJECTED overridden or extended."""
    leaving = {(source, event) for source, event, dest in arrows() if source in ENDS and dest is not source}
    assert leaving == {
        (State.FAILED, e.RunRetried.type()),
        (State.REJECTED, e.RejectionOverridden.type()),
        (State.REJECTED, e.RunExtended.type()),
    }


def test_every_state_can_be_reached_and_left_for_an_end() -> None:
    """No state is cut off and none is a trap."""
    forward: dict[State, set[State]] = {state: set() for state in State}
    for source, _, dest in arrows():
        forward[source].add(dest)

    def reached(start: State) -> set[State]:
        found, edge = {start}, {start}
        while edge:
            edge = {dest for source in edge for dest in forward[source]} - found
            found |= edge
        return found

    assert reached(State.NEW) == set(State)
    for state in State:
        assert reached(state) & ENDS


def test_the_diagram_can_be_drawn_from_the_machine() -> None:
    """Every arrow of the table stands in the Mermaid text of the same transitions."""
    transitions = [
        {"trigger": trigger, "source": source, "dest": arrow.dest}
        for trigger, event in MACHINE.events.items()
        for source, found in event.transitions.items()
        for arrow in found
    ]
    machine = GraphMachine(
        states=list(MACHINE.states),
        initial=State.NEW.value,
        auto_transitions=False,
        transitions=transitions,
        graph_engine="mermaid",
    )
    drawn = [line.strip() for line in machine.get_graph().source.splitlines()]
    for source, event, dest in arrows():
        lines = [line for line in drawn if line.startswith(f"{source.value} --> {dest.value}:")]
        assert len(lines) == 1, (source, event, dest)
        assert event in lines[0]


def test_a_run_is_refused_a_second_beginning(life: Life) -> None:
    """A run is requested once."""
    with pytest.raises(TransitionRefused, match="run_requested does not fit a run in AWAITING_FEATURES"):
        destination(_after(life("r")[:2]), life("r")[0])
