"""Commands as they stand on the wire: their fields beside `type` and `run_id`."""

import re
from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from typing import Annotated, Literal, cast, get_args

from pydantic import Field, create_model

from training_fsm.domain.commands import RUN_ID, Command, RequestTraining
from training_fsm.domain.model import Model
from training_fsm.domain.request import Request
from training_fsm.messaging.command_listener import ID_CHARACTERS_MAX, STRUCTURED

Text = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS_MAX)]


def _absent(description: str) -> object:
    """A field that may be left out, and is then no null."""
    return Field(default=None, validate_default=False, description=description)


_ID = (
    "With the source, the command's key in the inbox: a repeat changes nothing. Absent: a digest of message and place."
)
_SOURCE = "Who asks. Absent: `kafka:` and the topic."
_TYPE = "Says which command this is, unless the CloudEvents attribute of the message does."
_RUN_ID = "Absent: the message's key. A request for training that has neither is given an id, the same for a repeat."


@cache  # two classes of one name would get two names in a document
def command_message(command: type[Command]) -> object:
    """The type of a command's value: a model, or for a training request one for each mode."""
    if command is not RequestTraining:
        return _made(command.__name__, command, _beside(command))
    variants = [get_args(variant) for variant in get_args(get_args(Request)[0])]
    return reduce(or_, (_request(model, mode.tag) for model, mode in variants))


def structured_message(command: type[Command]) -> type[Model]:
    """A command as a structured CloudEvent: one JSON object that has the attributes and the data."""
    fields = {
        "specversion": (Literal["1.0"], "1.0"),
        "id": (Text, _absent(_ID)),
        "source": (Text, _absent(_SOURCE)),
        "type": (Literal[command.type], ...),
        "data": (command_message(command), ...),
    }
    return _made(f"{command.__name__}CloudEvent", _Attributes, fields)


def command_headers(command: type[Command]) -> type[Model]:
    """The headers of a command as a binary CloudEvent; one whose data says its type needs none of them."""
    fields = {
        "ce_specversion": (Literal["1.0"], "1.0"),
        "ce_id": (Text, _absent(_ID)),
        "ce_source": (Text, _absent(_SOURCE)),
        "ce_type": (Literal[command.type], _absent("Says which command this is, unless the data does.")),
    }
    return _made(f"{command.__name__}Headers", _Attributes, fields)


@cache
def structured_headers() -> type[Model]:
    """The header that tells a structured CloudEvent."""
    media_type = (Annotated[str, Field(pattern=f"^{re.escape(STRUCTURED)}")], ...)
    return _made("StructuredHeaders", _Attributes, {"content-type": media_type})


class _Attributes(Model, extra="allow"):
    """CloudEvents attributes; others are ignored."""


def _request(request: type[Model], mode: str) -> type[Model]:
    """A request of one mode, flat: its fields stand where other commands have theirs."""
    name = f"{RequestTraining.__name__}{mode.title().replace('_', '')}"
    return _made(name, request, _beside(RequestTraining) | {"mode": (Literal[mode], ...)})


def _beside(command: type[Command]) -> dict[str, tuple[object, object]]:
    return {
        "type": (Literal[command.type], _absent(_TYPE)),
        "run_id": (Annotated[str, Field(pattern=RUN_ID)], _absent(_RUN_ID)),
    }


def _made(name: str, model: type[Model], fields: Mapping[str, tuple[object, object]]) -> type[Model]:
    """The fields, and those of the model that are not among them; what its validators say no schema can."""
    rest = {own: (field.annotation, field) for own, field in model.model_fields.items() if own not in fields}
    base = model if model is _Attributes else Model
    made = create_model(name, __base__=base, __doc__=model.__doc__, **fields, **rest)  # type: ignore[call-overload]
    return cast(type[Model], made)
