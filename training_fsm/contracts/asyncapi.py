"""An AsyncAPI 3.0 document of all topics that we read or write, with every message on them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from pydantic import JsonValue
from pydantic.json_schema import JsonSchemaValue

from training_fsm.contracts.commands import command_headers, command_message, structured_headers, structured_message
from training_fsm.contracts.events import event_headers, event_message, topics_of
from training_fsm.contracts.json_schema import Direction, components, summary
from training_fsm.contracts.preprocess import PREPROCESS_MESSAGES, preprocess_headers
from training_fsm.domain.commands import COMMAND_TYPES
from training_fsm.domain.events import EVENT_TYPES, MessageDeadLettered
from training_fsm.messaging.command_listener import STRUCTURED
from training_fsm.messaging.topics import Topics

VERSION = "3.0.0"
_KAFKA_BINDING = "0.5.0"
_JSON = "application/json"
_RUN_KEY = "The run's id; may be absent where the data has it, and must not differ from it."
_EVENT_KEY = "The run's id; a model's name or a command's id where the event is no run's. It is `ce_subject`."
_LETTER_KEY = "As the unreadable message had it; any bytes, or none."


@dataclass(frozen=True, slots=True)
class _Message:
    """One kind of message, and the topics that it is on."""

    name: str
    summary: str
    payload: object
    headers: object
    direction: Direction
    key: str
    topics: tuple[str, ...]
    content_type: str = _JSON


def document() -> dict[str, JsonValue]:
    """The document, whole in itself. Topics stand in it without the setting `topic_prefix`."""
    topics = Topics.with_prefix("")
    messages = [*_commands(topics), *_events(topics), *_preprocess()]
    kinds: dict[str, tuple[object, Direction]] = {}
    for message in messages:
        kinds[f"{message.name} payload"] = (message.payload, message.direction)
        kinds[f"{message.name} headers"] = (message.headers, message.direction)
    schemas, shared = components(kinds)
    channels = {topic: _channel(topic, messages) for message in messages for topic in message.topics}
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "training-fsm",
            "version": version("training-fsm"),
            "description": "Training runs for deep-RL trading agents. Commands and preprocess's answers come in; every"
            " fact of a run goes out. Our own topics stand behind the setting `topic_prefix`, which is empty here.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _JSON,
        "servers": {
            "kafka": {
                "host": "{bootstrap_servers}",
                "protocol": "kafka",
                "description": "Setting `bootstrap_servers`.",
                "variables": {"bootstrap_servers": {"default": "localhost:9092"}},
            }
        },
        "channels": channels,
        "operations": {
            _operation_name(action, topic): {"action": action, "channel": {"$ref": f"#/channels/{topic}"}}
            for topic in channels
            for action in [_action(topic, topics)]
        },
        "components": {
            "messages": {message.name: _message(message, schemas) for message in messages},
            "schemas": shared,
        },
    }


def _commands(topics: Topics) -> Iterable[_Message]:
    for name, command in COMMAND_TYPES.items():
        words, to = summary(command), (topics.requested,)
        yield _Message(name, words, command_message(command), command_headers(command), "accepted", _RUN_KEY, to)
        yield _Message(
            f"{name}.structured",
            f"{words} As a structured CloudEvent.",
            structured_message(command),
            structured_headers(),
            "accepted",
            _RUN_KEY,
            to,
            STRUCTURED,
        )


def _events(topics: Topics) -> Iterable[_Message]:
    for name, event in EVENT_TYPES.items():
        key = _LETTER_KEY if event is MessageDeadLettered else _EVENT_KEY
        to = topics_of(event, topics)
        yield _Message(name, summary(event), event_message(event), event_headers(event), "read", key, to)


def _preprocess() -> Iterable[_Message]:
    for message in PREPROCESS_MESSAGES:
        headers, key = preprocess_headers(message), "The request's id. Not read: the value has it."
        yield _Message(message.event_type, summary(message), message, headers, "read", key, message.topics)


def _channel(topic: str, messages: list[_Message]) -> JsonValue:
    here = [message.name for message in messages if topic in message.topics]
    return {"address": topic, "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in here}}


def _message(message: _Message, schemas: dict[str, JsonSchemaValue]) -> JsonValue:
    key: dict[str, JsonValue] = {"description": message.key}
    if message.key != _LETTER_KEY:
        key["type"] = "string"
    return {
        "name": message.name,
        "summary": message.summary,
        "contentType": message.content_type,
        "headers": schemas[f"{message.name} headers"],
        "payload": schemas[f"{message.name} payload"],
        "bindings": {"kafka": {"key": key, "bindingVersion": _KAFKA_BINDING}},
    }


def _action(topic: str, topics: Topics) -> Literal["send", "receive"]:
    return "send" if topic in topics.all and topic != topics.requested else "receive"


def _operation_name(action: str, topic: str) -> str:
    """A name that is an identifier in most languages, for generators of code."""
    return action + "".join(word.title() for word in re.split(r"\W+", topic))
