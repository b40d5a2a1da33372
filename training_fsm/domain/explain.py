"""Pydantic's complaints in one line per field: path, what was expected, what was given."""

import difflib
import re
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from training_fsm.domain.model import Model

LINES_MAX = 20
_SHOWN_MAX = 60
_SILENT = frozenset({"missing", "extra_forbidden", "value_error", "json_invalid"})
"""Kinds whose words say already what was given, or where nothing was."""


def explain(error: ValidationError) -> list[str]:
    """At most LINES_MAX lines such as `agent.seed: expected a valid integer, got '7'`; the last counts the rest."""
    roots = tuple(kind for kind in _subclasses(Model) if kind.__name__ == error.title)
    found: dict[str, list[ErrorDetails]] = {}
    shapes: dict[str, tuple[type[BaseModel], ...]] = {}
    for details in error.errors(include_url=False, include_context=False):
        path, shape = _locate(roots, details["loc"])
        found.setdefault(path, []).append(details)
        shapes[path] = shape
    lines = [
        _line(path, complaints, shapes[path])
        for path, complaints in found.items()
        if not _other_branch(path, complaints, found)
    ]
    if len(lines) <= LINES_MAX:
        return lines
    return [*lines[: LINES_MAX - 1], f"… and {len(lines) - LINES_MAX + 1} more"]


def _subclasses(kind: type[Model]) -> Iterator[type[Model]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _models(annotation: object) -> tuple[type[BaseModel], ...]:
    """The models that a field's annotation can hold, through unions, tuples and dicts."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(model for part in get_args(annotation) for model in _models(part))


def _locate(
    roots: tuple[type[BaseModel], ...], location: tuple[int | str, ...]
) -> tuple[str, tuple[type[BaseModel], ...]]:
    """The path as a user writes it, without the names of union branches, and the models that hold its last key."""
    path, shape, holders = "", roots, roots
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        holders = shape
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        field = next((model.model_fields[part] for model in shape if part in model.model_fields), None)
        if field is not None:
            shape = _models(field.annotation)
        elif depth and not last and (branch := tuple(model for model in shape if model.__name__ == part)):
            shape = branch
            continue
        elif depth and last and _is_branch(part, shape):
            continue
        key = _shown(part)
        path = f"{path}.{key}" if path else key
    return path, holders


def _shown(key: str) -> str:
    """A key as it is; escaped where it would not print, cut where it is long."""
    return _cut(key if key.isprintable() else repr(key))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


def _is_branch(part: str, shape: tuple[type[BaseModel], ...]) -> bool:
    """Whether the last part of a location names a branch of a union, not a key."""
    return part in ("float", "int", "str", "bool") or any(model.__name__ == part for model in shape)


def _other_branch(path: str, complaints: list[ErrorDetails], found: dict[str, list[ErrorDetails]]) -> bool:
    """Whether an object was given, and another branch of the union says more exactly what is wrong inside it."""
    inside = any(other.startswith(f"{path}.") for other in found)
    return inside and all(details["type"].endswith("_type") for details in complaints)


def _line(path: str, complaints: list[ErrorDetails], holders: tuple[type[BaseModel], ...]) -> str:
    first = complaints[0]
    if first["type"] == "value_error":
        words = first["msg"].removeprefix("Value error, ")
        joint = "." if re.match(r"[A-Za-z_][\w.]*: ", words) else ": "
        return f"{path}{joint}{words}" if path else words
    wanted = list(dict.fromkeys(_expected(details, holders) for details in complaints))
    line = wanted[0] + "".join(f" or {more.removeprefix('expected ')}" for more in wanted[1:])
    if first["type"] not in _SILENT:
        line += f", got {_given(first['input'])}"
    return f"{path}: {line}" if path else line


def _expected(details: ErrorDetails, holders: tuple[type[BaseModel], ...]) -> str:
    match details["type"]:
        case "missing":
            return "missing"
        case "extra_forbidden":
            known = [name for model in holders for name in model.model_fields]
            close = difflib.get_close_matches(str(details["loc"][-1]), known, n=1)
            return f"unknown; did you mean {close[0]}?" if close else f"unknown; expected one of {', '.join(known)}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return "expected an object"
        case "tuple_type" | "list_type":
            return "expected a list"
        case "string_pattern_mismatch":
            return re.sub(r"^String should match", "expected a string that matches", details["msg"])
        case _:
            words = re.sub(r"^\w+ should (be |have )?", "expected ", details["msg"])
            return re.sub(r" after validation, not \d+$", "", words)


def _given(value: object) -> str:
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case dict():
            return "an object"
        case list() | tuple():
            return f"a list of {len(value)}"
        case _:
            return _cut(repr(value))
