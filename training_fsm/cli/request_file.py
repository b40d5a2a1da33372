"""A training request from a file: YAML 1.2 or JSON, as strict as a command on Kafka."""

import json
import re
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from training_fsm.cli.errors import BadInput
from training_fsm.domain.commands import RUN_ID, RequestTraining
from training_fsm.domain.explain import explain
from training_fsm.domain.request import ContinueRequest, TrainingRequest
from training_fsm.domain.request import read_request as read_json
from training_fsm.messaging.strict_json import parse

BYTES_MAX = 262_144
"""A command may not be larger on Kafka either."""


@dataclass(frozen=True, slots=True)
class RequestFile:
    """What a file asks for: from scratch with defaults filled in, in mode continue just what it gives."""

    run_id: str | None
    request: TrainingRequest | ContinueRequest


def read_request(name: str) -> RequestFile:
    """The request in a file, or on stdin for `-`. Raises BadInput with a line for each thing that is wrong."""
    fields = _fields(_text(name), "stdin" if name == "-" else name)
    wrong = []
    if fields.pop("type", RequestTraining.type) != RequestTraining.type:
        wrong.append(f"type: expected {RequestTraining.type}, or nothing")
    run_id = fields.pop("run_id", None)
    if run_id is not None and not (isinstance(run_id, str) and re.fullmatch(RUN_ID, run_id)):
        wrong.append(f"run_id: expected 1 to 64 letters, digits, '.', '_' or '-', got {run_id!r}")
    if "parent" in fields and fields.get("mode") != "continue":
        raise BadInput(*wrong, f"mode: expected continue, since a parent is named, got {fields.get('mode')}")
    try:
        request = read_json(json.dumps(fields))
    except ValidationError as error:
        raise BadInput(*wrong, *explain(error)) from error
    if wrong:
        raise BadInput(*wrong)
    return RequestFile(run_id if isinstance(run_id, str) else None, request)


def _text(name: str) -> str:
    try:
        with sys.stdin.buffer if name == "-" else Path(name).open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}") from error
    if len(content) > BYTES_MAX:
        raise BadInput(f"{name}: expected at most {BYTES_MAX} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: expected UTF-8 text, byte {error.start} is not") from error


def _fields(text: str, name: str) -> dict[str, object]:
    """The top-level object, made of nothing but what JSON has."""
    try:
        value: object = text if _is_json(text) else json.dumps(yaml.load(text, Loader=_Loader), allow_nan=False)
        fields = parse(str(value).encode("utf-8", "surrogatepass"))
    except yaml.YAMLError as error:
        raise BadInput(f"{name}: {_where(error)}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{name}: {error}") from error
    if not isinstance(fields, dict):
        raise BadInput(f"{name}: expected an object with the fields of a request")
    return dict(fields)


def _is_json(text: str) -> bool:
    """JSON is read as JSON, since YAML readers stumble over its tabs and escapes."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False  # `{a: b}` is YAML
    return True


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return problem if mark is None else f"line {mark.line + 1} column {mark.column + 1}: {problem}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `no` is text, `3e-4` a number, a time is text; no key twice, no aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  as yaml has it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: a few lines of them make gigabytes."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Refuse a key that stands twice, or is no text."""
        seen: set[str] = set()
        for key, _ in node.value:
            wrong = None
            if not isinstance(key, yaml.ScalarNode):
                wrong = "expected a text as key"
            elif key.value in seen:
                wrong = f"{key.value}: the key stands twice"
            if wrong:
                raise yaml.constructor.ConstructorError(None, None, wrong, key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), _first)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # decimal, where YAML 1.1 takes a leading zero for octal


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
