"""JSON as it may be stored: no duplicate keys, NUL characters, lone surrogates or non-finite numbers."""

import json
import math
from typing import Never

from pydantic import JsonValue

DEPTH_MAX = 64
"""Objects and lists within each other; ours need six."""
DIGITS_MAX = 400
"""Of an integer; a double has at most 309."""
_TOO_DEEP = f"value: expected JSON of at most {DEPTH_MAX} levels"


def parse(value: bytes) -> JsonValue:
    """The value of UTF-8 JSON text. Raises ValueError that says what is wrong, and where."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"value: expected UTF-8 text, byte {error.start} is not") from error
    try:
        parsed: JsonValue = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"value: expected JSON, {error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if bad := _unstorable(parsed, ""):
        raise ValueError(bad)
    return parsed


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: the key stands twice")
    return found


def _refuse(constant: str) -> Never:
    raise ValueError(f"value: expected finite numbers, got {constant}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):  # 1e999 is infinity to Python
        raise ValueError(f"value: expected numbers that a double can hold, got {digits[:80]}")
    return number


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValueError(f"value: expected integers of at most {DIGITS_MAX} digits, got {len(digits)}")
    return int(digits)


def _unstorable(value: JsonValue, path: str, depth: int = 0) -> str | None:
    if depth > DEPTH_MAX:
        return _TOO_DEEP
    match value:
        case str():
            return wrong_text(value, path or "value")
        case dict():
            children = [(f"{path}.{key}" if path else key, child) for key, child in value.items()]
            wrong_keys = (wrong_text(key, f"a key in {path or 'the object'}") for key in value)
            return next(filter(None, wrong_keys), None) or _first(children, depth)
        case list():
            return _first([(f"{path}[{index}]", child) for index, child in enumerate(value)], depth)
        case _:
            return None


def _first(children: list[tuple[str, JsonValue]], depth: int) -> str | None:
    return next(filter(None, (_unstorable(child, path, depth + 1) for path, child in children)), None)


def storable(text: str) -> str:
    """The text without what Postgres cannot read back."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def wrong_text(text: str, name: str) -> str | None:
    """What makes this text unfit for Postgres, if anything."""
    if "\x00" in text:
        return f"{name}: expected text without NUL characters"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"{name}: expected Unicode text, a lone surrogate is none"
    return None
