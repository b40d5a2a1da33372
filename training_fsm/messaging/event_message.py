"""A stored event as Kafka messages: which topics, which key, CloudEvents headers."""

import base64
import json
from dataclasses import dataclass

from training_fsm.domain.events import (
    CommandRefused,
    LogRestored,
    MessageDeadLettered,
    ModelRegistered,
    ModelRejected,
    RunCancelled,
    RunFailed,
)
from training_fsm.messaging.topics import Topics
from training_fsm.ports import StoredEvent

SOURCE = "training-fsm"
_COMPLETED = frozenset(event.type() for event in (ModelRegistered, ModelRejected, RunCancelled))
_ERROR = frozenset(event.type() for event in (RunFailed, CommandRefused))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish."""

    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


def to_messages(event: StoredEvent, topics: Topics, restored_at: int = 0) -> list[Outgoing]:
    """The messages that tell of an event. Their id is stream and version: a repeat is recognised by it.

    Behind `restored_at`, where the log was restored last, versions that had gone out come again with other events:
    the id names that position as well.
    """
    headers = _headers(event, restored_at)
    if event.type == MessageDeadLettered.type():
        key64 = json.loads(event.payload)["key_base64"]
        key = None if key64 is None else base64.b64decode(key64)
        return [Outgoing(topics.dead_letters, key, _value(event), headers)]
    names = [topics.events]
    if event.type in _COMPLETED:
        names.append(topics.completed)
    if event.type in _ERROR:
        names.append(topics.error)
    return [Outgoing(name, _subject(event).encode(), _value(event), headers) for name in names]


def _subject(event: StoredEvent) -> str:
    """The run's id, the model's name, the command's id, or the stream of a restored log."""
    if event.type == LogRestored.type():
        return event.stream
    kind, _, rest = event.stream.partition("-")
    return rest if kind in ("run", "model") else str(json.loads(event.payload).get("command_id", rest))


def _value(event: StoredEvent) -> bytes:
    envelope = {
        "type": event.type,
        "run_id": event.stream.removeprefix("run-") if event.stream.startswith("run-") else None,
        "version": event.version,
        "position": event.position,
        "occurred_at": event.occurred_at.isoformat(),
        "from_state": event.from_state,
        "to_state": event.to_state,
        "actor": event.actor,
        "causation_id": event.causation_id,
    }
    head = json.dumps(envelope, ensure_ascii=False, separators=(",", ":"))
    return f'{head[:-1]},"data":{event.payload}}}'.encode()  # the payload's exact text, as the hash covers it


def _headers(event: StoredEvent, restored_at: int) -> list[tuple[str, str | bytes | None]]:
    return [
        ("ce_specversion", "1.0"),
        ("ce_id", f"{event.stream}/{event.version}" + (f"~{restored_at}" if restored_at else "")),
        ("ce_source", SOURCE),
        ("ce_type", event.type),
        ("ce_subject", _subject(event)),
        ("ce_time", event.occurred_at.isoformat()),
        ("ce_runversion", str(event.version)),
        ("ce_dataschemaversion", str(event.schema_version)),
        ("ce_position", str(event.position)),
        ("content-type", "application/json"),
        ("event_type", event.type),
    ]
