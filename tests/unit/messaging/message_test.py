"""Letters about unreadable messages, and events as messages."""

import base64
import hashlib
import json
from datetime import UTC, datetime

import pytest

from training_fsm.domain.events import CommandRefused, LogRestored, MessageDeadLettered, RunFailed
from training_fsm.domain.facts import Failure
from training_fsm.domain.states import State
from training_fsm.messaging.event_message import to_messages
from training_fsm.messaging.message import Message, dead_letter
from training_fsm.messaging.topics import Topics
from training_fsm.ports import StoredEvent

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
TOPICS = Topics.with_prefix("p.")
EVENT_BYTES_MAX = 524_288


def _stored(stream: str, type_: str, payload: str) -> StoredEvent:
    return StoredEvent(
        position=9,
        stream=stream,
        version=4,
        type=type_,
        schema_version=1,
        occurred_at=NOON,
        from_state=None,
        to_state=None,
        actor="orchestrator",
        causation_id="m1",
        correlation_id="c1",
        payload=payload,
    )


def test_a_letter_keeps_the_whole_message_and_an_event_of_bounded_size() -> None:
    """The event has the message's head, digest and place; the largest message makes one that fits."""
    value, key = bytes(range(256)) * 4096, b"\x00\xff" * 4096
    headers = tuple((f"\x01ü{number}", b"\xff" * 100) for number in range(5000))
    letter = dead_letter(Message("t", 1, 2, 3, key, value, headers), "\x00\x01" * 400_000)
    assert (letter.message, letter.key, letter.headers) == (value, key, headers)
    names = [header.name for header in letter.event.headers]
    assert names == [name for name, _ in headers[: len(names)]]
    assert 50 < len(names) < 200
    assert letter.event.sha256 == hashlib.sha256(value).hexdigest()
    assert (letter.event.topic, letter.event.partition, letter.event.offset) == ("t", 1, 2)
    assert base64.b64decode(letter.event.bytes) == value[:65_536]
    assert base64.b64decode(letter.event.key_base64 or "") == key[:1024]
    assert len(letter.event.model_dump_json()) < EVENT_BYTES_MAX


def test_a_message_without_an_id_is_known_by_place_and_bytes() -> None:
    """Each part of it makes another id."""
    first = Message("t", 1, 2, 3, b"k", b"v")
    others = [
        Message("u", 1, 2, 3, b"k", b"v"),
        Message("t", 0, 2, 3, b"k", b"v"),
        Message("t", 1, 3, 3, b"k", b"v"),
        Message("t", 1, 2, 4, b"k", b"v"),
        Message("t", 1, 2, 3, b"k", b"w"),
    ]
    assert len({message.digest for message in (first, *others)}) == 6
    assert Message("t", 1, 2, 3, None, b"v").digest == first.digest


@pytest.mark.parametrize(
    ("type_", "topics"),
    [
        ("run_requested", ["p.events.train-model"]),
        ("model_registered", ["p.events.train-model", "p.completed.train-model"]),
        ("model_rejected", ["p.events.train-model", "p.completed.train-model"]),
        ("run_cancelled", ["p.events.train-model", "p.completed.train-model"]),
        ("run_failed", ["p.events.train-model", "p.error.train-model"]),
    ],
)
def test_an_event_goes_to_its_topics_under_the_run_s_id(type_: str, topics: list[str]) -> None:
    """Every message of an event carries the same id, so that a repeat is recognised."""
    messages = to_messages(_stored("run-r-1", type_, '{"a":1.0}'), TOPICS)
    assert [message.topic for message in messages] == topics
    for message in messages:
        assert message.key == b"r-1"
        headers = dict(message.headers)
        assert headers["ce_id"] == "run-r-1/4"
        assert headers["ce_type"] == headers["event_type"] == type_
        assert (headers["ce_specversion"], headers["ce_source"], headers["ce_subject"]) == (
            "1.0",
            "training-fsm",
            "r-1",
        )
        assert message.value.endswith(b',"data":{"a":1.0}}')
        body = json.loads(message.value)
        assert (body["run_id"], body["version"], body["position"]) == ("r-1", 4, 9)


def test_the_payload_travels_as_the_very_text_that_was_hashed() -> None:
    """Order, spaces and numbers are those of the log."""
    payload = '{"b": 1.50, "a":1,  "ü":"\\u00e4"}'
    [message] = to_messages(_stored("run-r", "run_claimed", payload), TOPICS)
    assert message.value.decode().endswith(f',"data":{payload}}}')


def test_behind_a_restore_the_id_is_another_one() -> None:
    """Stream and version come again with another event; a repeat of what went out before keeps its id."""
    stored = _stored("run-r-1", "run_claimed", "{}")
    [before], [behind] = to_messages(stored, TOPICS), to_messages(stored, TOPICS, restored_at=7)
    assert dict(before.headers)["ce_id"] == "run-r-1/4"
    assert dict(behind.headers)["ce_id"] == "run-r-1/4~7"
    restored = LogRestored(last_position=2, published_position=6)
    [message] = to_messages(_stored("log-restored", restored.type(), restored.model_dump_json()), TOPICS, 7)
    assert (message.topic, message.key) == (TOPICS.events, b"log-restored")


def test_a_refusal_goes_to_events_and_errors_under_the_command_s_id() -> None:
    """Its sender finds it by the id that it gave."""
    refused = CommandRefused(command_id="a/1", command_source="/s", command_type="t", run_id=None, reason="no")
    messages = to_messages(_stored("command-/s/a%2F1", refused.type(), refused.model_dump_json()), TOPICS)
    assert [message.topic for message in messages] == [TOPICS.events, TOPICS.error]
    assert {message.key for message in messages} == {b"a/1"}
    assert json.loads(messages[0].value)["run_id"] is None


@pytest.mark.parametrize("key", [None, b"", b"\xff\x00k"])
def test_a_letter_goes_to_its_topic_only_under_the_key_it_came_with(key: bytes | None) -> None:
    """No key stays no key."""
    letter = dead_letter(Message("t", 1, 2, 3, key, b"x"), "why")
    [message] = to_messages(_stored("letter-1", MessageDeadLettered.type(), letter.event.model_dump_json()), TOPICS)
    assert (message.topic, message.key) == (TOPICS.dead_letters, key)


def test_the_largest_event_fits_into_a_message() -> None:
    """What the database accepts, the producer must be able to send: one that it cannot would block all others."""
    failure = Failure(kind="training_error", words="w", detail="d")
    event = RunFailed(reason=failure, failed_from=State.TRAINING).model_dump_json()
    payload = event[:-1] + " " * (EVENT_BYTES_MAX - len(event)) + "}"
    stream = "command-" + "ü" * 200 + "/" + "%2F" * 200
    for message in to_messages(_stored(stream, "run_failed", payload), TOPICS):
        headers = sum(len(name) + len(content or "") * 2 for name, content in message.headers)
        assert len(message.value) + headers + len(message.key or b"") < 1_000_000
