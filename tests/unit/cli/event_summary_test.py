from collections.abc import Callable
from datetime import UTC, datetime

from training_fsm.cli.event_summary import summary
from training_fsm.domain import events as e
from training_fsm.domain.facts import Failure
from training_fsm.domain.states import State

FAILURE = Failure(kind="data_unusable", words="NaN in close", field="close", range="2017-03-01")


def _others(life: tuple[e.Event, ...]) -> tuple[e.Event, ...]:
    started = next(event for event in life if isinstance(event, e.TrainingStarted))
    letter: dict[str, object] = dict.fromkeys(e.MessageDeadLettered.model_fields)
    letter |= {"topic": "t", "partition": 0, "offset": 7, "reason": "no JSON", "sha256": "", "size_bytes": 1}
    return (
        e.TrainingResumed(
            token=2, step=2048, checkpoint="a", fidelity="exact", fingerprint=started.fingerprint, differences=()
        ),
        e.ModelRejected(failed=("sharpe",)),
        e.AttemptFailed(reason=FAILURE, attempt=2, retry_at=datetime(2026, 11, 24, tzinfo=UTC)),
        e.RunFailed(reason=FAILURE, failed_from=State.TRAINING),
        e.RunCancelled(actor="me", why="enough"),
        e.RunRetried(actor="me", why=""),
        e.CommandRefused(command_id="1", command_source="s", command_type="cancel_run", run_id="r", reason="no run"),
        e.MessageDeadLettered.model_validate(letter | {"bytes": ""}),
    )


def test_every_event_has_a_line(life: Callable[[str], tuple[e.Event, ...]]) -> None:
    """No type of event is shown without a word about what happened."""
    events = (*life("r"), *_others(life("r")))
    assert {event.type() for event in events} == set(e.EVENT_TYPES)
    assert [event.type() for event in events if not summary(event)] == []


def test_a_failure_names_its_place() -> None:
    """Field and range stand beside the words."""
    line = summary(e.RunFailed(reason=FAILURE, failed_from=State.TRAINING))
    assert line == "data_unusable: NaN in close [field close, range 2017-03-01]"
