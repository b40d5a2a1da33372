"""Messages on `requested.train-model` -> commands, refusals or dead letters."""

import json
import re
from dataclasses import dataclass
from uuid import uuid5

from pydantic import JsonValue, ValidationError

from training_fsm.domain.commands import COMMAND_TYPES, RUN_ID, Command, RequestTraining
from training_fsm.domain.decide import NAMESPACE
from training_fsm.domain.explain import explain
from training_fsm.domain.inbound import CommandMalformed, CommandReceived, Inbound
from training_fsm.domain.request import read_request
from training_fsm.messaging.message import Message, dead_letter
from training_fsm.messaging.strict_json import parse, wrong_text

COMMAND_BYTES_MAX = 262_144
ID_CHARACTERS_MAX = 200
STRUCTURED = "application/cloudevents+json"

Fields = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The CloudEvents attributes of a command, however it was packed, and its data."""

    source: str
    command_id: str
    type: str
    data: Fields


def hear_command(message: Message) -> Inbound:
    """The command in a message: binary or structured CloudEvents, or a plain JSON object with `type`."""
    if len(message.value) > COMMAND_BYTES_MAX:
        return dead_letter(message, f"value: expected at most {COMMAND_BYTES_MAX} bytes, got {len(message.value)}")
    try:
        envelope = _unpack(message)
        key = _text(message.key, "key") if message.key is not None else None
    except ValueError as error:
        return dead_letter(message, str(error))
    try:
        run_id = _run_id(envelope, key)
        command = _command(envelope, run_id)
    except _Malformed as error:
        return CommandMalformed(envelope.source, envelope.command_id, envelope.type, error.run_id, str(error))
    return CommandReceived(envelope.source, envelope.command_id, command)


class _Malformed(ValueError):
    """The envelope was readable, so that the sender can be told."""

    def __init__(self, reason: str, run_id: str | None = None) -> None:
        super().__init__(reason)
        self.run_id = run_id


def _unpack(message: Message) -> _Envelope:
    headers = {
        name: _text(content, f"header {name}")
        for name, content in ((name.lower(), content) for name, content in message.headers)
        if name == "content-type" or name.startswith("ce_")  # others are not for us, and need not be text
    }
    body = parse(message.value)
    if not isinstance(body, dict):
        raise ValueError(f"value: expected a JSON object, got {type(body).__name__}")
    if headers.get("content-type", "").startswith(STRUCTURED):
        attributes, data = body, body.get("data")
        if not isinstance(data, dict):
            raise ValueError("data: expected an object")
    else:
        attributes = {name.removeprefix("ce_"): text for name, text in headers.items() if name.startswith("ce_")}
        data = body
    return _Envelope(
        source=_attribute(attributes, "source", f"kafka:{message.topic}"),
        command_id=_attribute(attributes, "id", message.digest),
        type=_type(attributes, data),
        data={name: value for name, value in data.items() if name != "type"},
    )


def _text(content: bytes, name: str) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected UTF-8 text") from error
    if wrong := wrong_text(text, name):
        raise ValueError(wrong)
    return text


def _attribute(attributes: Fields, name: str, otherwise: str) -> str:
    value = attributes.get(name, otherwise)
    if not isinstance(value, str) or not 0 < len(value) <= ID_CHARACTERS_MAX:
        raise ValueError(f"{name}: expected text of 1 to {ID_CHARACTERS_MAX} characters, got {_short(value)}")
    return value


def _type(attributes: Fields, data: Fields) -> str:
    version = attributes.get("specversion", "1.0")
    if version != "1.0":
        raise ValueError(f"specversion: expected 1.0, got {_short(version)}")
    named = [value for value in (attributes.get("type"), data.get("type")) if value is not None]
    if not named:
        raise ValueError(f"type: expected one of {', '.join(COMMAND_TYPES)}, got nothing")
    if any(not isinstance(value, str) or value != named[0] for value in named) or len(str(named[0])) > 100:
        raise ValueError(f"type: expected one of {', '.join(COMMAND_TYPES)}, got {_short(named)}")
    return str(named[0])


def _run_id(envelope: _Envelope, key: str | None) -> str:
    data = envelope.data.get("run_id")
    if data is not None and not isinstance(data, str):
        raise _Malformed(f"run_id: expected text, got {_short(data)}")
    if key and data and key != data:
        raise _Malformed(f"run_id: the message's key says {_short(key)}, its data {_short(data)}; expected the same")
    run_id = data or key
    if not run_id:
        if envelope.type != RequestTraining.type:
            raise _Malformed("run_id: expected the id of a run, in the data or as the message's key")
        run_id = str(uuid5(NAMESPACE, f"{envelope.source}/{envelope.command_id}"))
    if not re.fullmatch(RUN_ID, run_id):
        raise _Malformed(f"run_id: expected 1 to 64 letters, digits, '.', '_' or '-', got {_short(run_id)}")
    return run_id


def _command(envelope: _Envelope, run_id: str) -> Command:
    command = COMMAND_TYPES.get(envelope.type)
    if command is None:
        raise _Malformed(f"type: expected one of {', '.join(COMMAND_TYPES)}, got {_short(envelope.type)}", run_id)
    fields = {name: value for name, value in envelope.data.items() if name != "run_id"}
    try:
        if command is RequestTraining:
            return RequestTraining(run_id=run_id, request=read_request(json.dumps(fields)))
        return command.model_validate_json(json.dumps(fields | {"run_id": run_id}), strict=True)
    except ValidationError as error:
        raise _Malformed("; ".join(explain(error)), run_id) from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
