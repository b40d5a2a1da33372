"""A Kafka message as plain data, and the letter that an unreadable one becomes."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from confluent_kafka import Message as KafkaMessage

from training_fsm.domain.events import MessageDeadLettered
from training_fsm.domain.facts import Header
from training_fsm.domain.inbound import LetterReceived
from training_fsm.messaging.strict_json import storable

LETTER_HEAD_BYTES = 65_536
LETTER_KEY_BYTES = 1_024
LETTER_HEADERS_BYTES = 16_384
LETTER_REASON_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Message:
    """What came, and from where."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of topic, partition, offset, timestamp and value: the id of a message that carries none."""
        place = f"{self.topic}/{self.partition}/{self.offset}/{self.timestamp_ms}/".encode()
        return hashlib.sha256(place + self.value).hexdigest()


def from_kafka(message: KafkaMessage) -> Message:
    """The message as plain data; a tombstone has an empty value."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None, "a consumed message has a place"
    assert partition is not None, "a consumed message has a place"
    assert offset is not None, "a consumed message has a place"
    key, value = message.key(), message.value()
    headers = message.headers() or ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return Message(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=message.timestamp()[1],
        key=key.encode() if isinstance(key, str) else key,
        value=value.encode() if isinstance(value, str) else value or b"",
        headers=tuple((name, _bytes(content)) for name, content in pairs),
    )


def _bytes(content: str | bytes | None) -> bytes:
    return content.encode() if isinstance(content, str) else content or b""


def dead_letter(message: Message, reason: str) -> LetterReceived:
    """The letter about a message that cannot be read, for the reason given."""
    key = message.key[:LETTER_KEY_BYTES] if message.key is not None else None
    headers = tuple((storable(name), content) for name, content in message.headers)
    event = MessageDeadLettered(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        reason=storable(reason)[:LETTER_REASON_CHARACTERS],
        sha256=hashlib.sha256(message.value).hexdigest(),
        size_bytes=len(message.value),
        key_base64=None if key is None else base64.b64encode(key).decode(),
        bytes=base64.b64encode(message.value[:LETTER_HEAD_BYTES]).decode(),
        headers=tuple(_first(headers)),
    )
    return LetterReceived(message.digest, event, message.value, message.key, headers)


def _first(headers: Sequence[tuple[str, bytes]]) -> Iterator[Header]:
    """The headers up to the first one that there is no room for."""
    room = LETTER_HEADERS_BYTES
    for name, content in headers:
        header = Header(name=name, value_base64=base64.b64encode(content).decode())
        room -= len(header.model_dump_json())
        if room < 0:
            return
        yield header
