"""Old events, brought up to date when they are read; stored bytes are never rewritten."""

import json
from collections.abc import Callable

from pydantic import JsonValue

from training_fsm.domain.events import EVENT_TYPES, Event

Upcaster = Callable[[dict[str, JsonValue]], dict[str, JsonValue]]

UPCASTERS: dict[tuple[str, int], Upcaster] = {}
"""(event type, schema version it upgrades from) -> payload of the next version."""


def read_event(event_type: str, schema_version: int, payload: str) -> Event:
    """The typed event of a stored payload. Raises ValueError for a type or version this build does not know."""
    event = EVENT_TYPES.get(event_type)
    if event is None or schema_version > event.schema_version:
        raise ValueError(f"event {event_type} version {schema_version} is newer than this build")
    if schema_version == event.schema_version:
        return event.model_validate_json(payload)
    data = json.loads(payload)
    for version in range(schema_version, event.schema_version):
        data = UPCASTERS[event_type, version](data)
    return event.model_validate(data)
