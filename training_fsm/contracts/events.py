"""Our events as messages: the envelope around their data, their headers, and the topics that they go to."""

from datetime import UTC, datetime
from typing import Literal, cast

from pydantic import Field, create_model

from training_fsm.domain.events import Event
from training_fsm.domain.model import Model
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import UtcTime
from training_fsm.messaging.event_message import SOURCE, to_messages
from training_fsm.messaging.topics import Topics
from training_fsm.ports import StoredEvent


class EventEnvelope(Model):
    """What stands around an event's data in every message."""

    type: str
    run_id: str | None
    """Null for an event that is no run's: a refusal, a dead letter, a model's, a restored log's."""
    version: int = Field(ge=1)
    """Place in the run's own stream, from 1 without a gap."""
    position: int = Field(ge=1)
    """Place in the whole log; gaps are no loss."""
    occurred_at: UtcTime
    from_state: State | None
    to_state: State | None
    actor: str
    """Who wrote the event: a role of ours, or a worker by name."""
    causation_id: str
    """The message or the work that led to it."""


class EventHeaders(Model):
    """The headers of every event: CloudEvents 1.0 attributes in binary form, and the family's `event_type`."""

    ce_specversion: Literal["1.0"]
    ce_id: str
    """Stream and version, behind a restore of the log its position too: a repeat carries the same."""
    ce_source: Literal["training-fsm"]
    ce_type: str
    ce_subject: str
    """The run's id; a model's name or a command's id where the event is no run's."""
    ce_time: UtcTime
    ce_runversion: str = Field(pattern=r"^[1-9][0-9]*$")
    ce_dataschemaversion: str = Field(pattern=r"^[1-9][0-9]*$")
    ce_position: str = Field(pattern=r"^[1-9][0-9]*$")
    content_type: Literal["application/json"] = Field(alias="content-type")
    event_type: str


def event_message(event: type[Event]) -> type[Model]:
    """The type of a message's value: the envelope with this event's data."""
    fields: dict[str, object] = {"type": (Literal[event.type()], ...), "data": (event, ...)}
    return _made(f"{event.__name__}Message", EventEnvelope, event, fields)


def event_headers(event: type[Event]) -> type[Model]:
    """The headers of this event's messages."""
    fields: dict[str, object] = {
        "ce_type": (Literal[event.type()], ...),
        "ce_dataschemaversion": (Literal[str(event.schema_version)], ...),
        "event_type": (Literal[event.type()], ...),
    }
    return _made(f"{event.__name__}Headers", EventHeaders, EventHeaders, fields)


def topics_of(event: type[Event], topics: Topics) -> tuple[str, ...]:
    """The topics that this event is published on; the relay's own code says so."""
    sample = StoredEvent(
        position=1,
        stream="run-sample",
        version=1,
        type=event.type(),
        schema_version=event.schema_version,
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        from_state=None,
        to_state=None,
        actor=SOURCE,
        causation_id="",
        correlation_id="",
        payload='{"key_base64": null}',
    )
    return tuple(message.topic for message in to_messages(sample, topics))


def _made(name: str, base: type[Model], said: type[Model], fields: dict[str, object]) -> type[Model]:
    made = create_model(name, __base__=base, __doc__=said.__doc__, **fields)  # type: ignore[call-overload]
    return cast(type[Model], made)
