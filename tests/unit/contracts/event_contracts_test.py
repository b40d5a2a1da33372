"""Our own messages against their schemas."""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import jsonschema_rs
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from training_fsm.contracts.files import contract_files
from training_fsm.domain.events import EVENT_TYPES, CommandRefused, Event, MessageDeadLettered, RunRequested
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.states import State
from training_fsm.messaging.event_message import Outgoing, to_messages
from training_fsm.messaging.message import Message, dead_letter
from training_fsm.messaging.topics import Topics
from training_fsm.ports import StoredEvent

Validator = jsonschema_rs.Draft202012Validator
Contract = Callable[[str], Validator]
Lives = tuple[Event, ...]

TOPICS = Topics.with_prefix("")
ASYNCAPI = yaml.safe_load(contract_files()["asyncapi.yaml"])
FREE_FORM = {"success_details", "raw_parameter_sets", "parsed_parameter_sets", "config"}
"""Fields whose content is another service's, or a validation's own."""


def _messages(event: Event, stream: str = "run-r-1", version: int = 1) -> list[Outgoing]:
    stored = StoredEvent(
        position=version + 40,
        stream=stream,
        version=version,
        type=event.type(),
        schema_version=event.schema_version,
        occurred_at=datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC),
        from_state=None if version == 1 else State.TRAINING.value,
        to_state=State.TRAINING.value,
        actor="worker-1",
        causation_id="m1",
        correlation_id="c1",
        payload=event.model_dump_json(),
    )
    return to_messages(stored, TOPICS)


@pytest.fixture
def lives(
    life: Callable[[str], Lives], continued_life: Callable[[str, bool], Lives]
) -> list[tuple[Event, dict[str, JsonValue]]]:
    """Every event of a whole life and of two continued ones, with the value of its message."""
    events = [*life("r"), *continued_life("c", False), *continued_life("d", True)]
    return [(event, json.loads(_messages(event, version=n)[0].value)) for n, event in enumerate(events, start=1)]


def test_a_whole_life_is_told_in_messages_of_the_contract(
    lives: list[tuple[Event, dict[str, JsonValue]]], contract: Contract
) -> None:
    """From the request to the registered model, of a run from scratch and of continued ones."""
    for event, value in lives:
        contract(f"events/{event.type()}").validate(value)


def test_the_contract_names_every_field_of_a_life(lives: list[tuple[Event, dict[str, JsonValue]]]) -> None:
    """The schemas are open for what is to come; closed, they still take everything that is sent today."""
    for event, value in lives:
        closed = _closed(json.loads(contract_files()[f"events/{event.type()}.json"]))
        Validator(closed, validate_formats=True).validate(value)
        assert not Validator(closed).is_valid(value | {"more": 1})


def _closed(schema: object) -> object:
    match schema:
        case dict():
            parts = {name: _closed(part) for name, part in schema.items()}
            return parts | ({"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {})
        case list():
            return [_closed(part) for part in schema]
        case _:
            return schema


def test_altered_messages_are_noticed(lives: list[tuple[Event, dict[str, JsonValue]]], contract: Contract) -> None:
    """Whatever value is changed to one of another kind, the message is no longer of the contract."""
    altered = 0
    for event, value in lives:
        validator = contract(f"events/{event.type()}")
        for path, other in _altered(value):
            altered += 1
            assert not validator.is_valid(other) or FREE_FORM & set(path), f"{event.type()}: {path}"
    assert altered > 1000


def _altered(value: JsonValue) -> Iterator[tuple[tuple[str | int, ...], JsonValue]]:
    """The value with each of its parts in turn replaced by one of a kind that stands nowhere in a message."""
    yield (), [[]]
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        for path, other in _altered(part):
            if isinstance(value, dict):
                yield (name, *path), value | {str(name): other}
            elif isinstance(value, list):
                yield (name, *path), [other if at == name else item for at, item in enumerate(value)]


def test_lost_fields_are_noticed(lives: list[tuple[Event, dict[str, JsonValue]]], contract: Contract) -> None:
    """Without any field of the envelope, or a field of the event that has no default, it is no message."""
    for event, value in lives:
        validator, data = contract(f"events/{event.type()}"), value["data"]
        assert isinstance(data, dict)
        for name in value:
            assert not validator.is_valid({other: value[other] for other in value if other != name})
        for name, field in type(event).model_fields.items():
            without = value | {"data": {other: data[other] for other in data if other != name}}
            assert validator.is_valid(without) is not field.is_required(), f"{event.type()}: {name}"


def test_an_event_is_not_taken_for_another(lives: list[tuple[Event, dict[str, JsonValue]]], contract: Contract) -> None:
    """The type in the envelope is part of the schema."""
    for event, value in lives:
        assert [name for name in EVENT_TYPES if contract(f"events/{name}").is_valid(value)] == [event.type()]


def test_refusals_and_dead_letters_are_messages_of_the_contract(contract: Contract) -> None:
    """Events that are no run's have no run id, and a key that their topic's readers expect."""
    refused = CommandRefused(command_id="7", command_source="/s", command_type="t", run_id=None, reason="no")
    letter = dead_letter(Message("t", 1, 2, 3, b"\xff", b"\x00no"), "why").event
    for event, stream, key in ((refused, "command-/s/7", b"7"), (letter, "letter-1", b"\xff")):
        for message in _messages(event, stream):
            assert message.key == key
            value = json.loads(message.value)
            assert value["run_id"] is None
            contract(f"events/{event.type()}").validate(value)


@pytest.fixture
def some_requests(life: Callable[[str], Lives], continued_life: Callable[[str, bool], Lives]) -> None:
    """Requests have rules on several fields at once, which Hypothesis cannot guess."""
    scratch, continued = life("r")[0], continued_life("c", False)[0]
    assert isinstance(scratch, RunRequested)
    assert isinstance(continued, RunRequested)
    assert isinstance(scratch.request, TrainingRequest)
    for whole in (scratch.request, continued.request, scratch.request.range, scratch.feature_config):
        st.register_type_strategy(type(whole), st.just(whole))


@pytest.mark.usefixtures("some_requests")
@pytest.mark.parametrize("name", EVENT_TYPES)
def test_any_event_makes_messages_of_the_contract(name: str, contract: Contract) -> None:
    """Whatever an event's types allow validates, and so do the headers, for every topic that it is sent to."""
    keys = st.none() | st.binary(max_size=20).map(lambda key: base64.b64encode(key).decode())

    @settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.builds(EVENT_TYPES[name], **({"key_base64": keys} if name == MessageDeadLettered.type() else {})))
    def holds(event: Event) -> None:
        for message in _messages(event, "letter-1" if isinstance(event, MessageDeadLettered) else "run-r-1"):
            contract(f"events/{name}").validate(json.loads(message.value))
            _headers_of(name).validate(dict(message.headers))
            assert name in ASYNCAPI["channels"][message.topic]["messages"]

    holds()


def _headers_of(name: str) -> jsonschema_rs.Draft7Validator:
    """The schema of a message's headers in the AsyncAPI document, closed."""
    reference = ASYNCAPI["components"]["messages"][name]["headers"]["$ref"]
    schema = ASYNCAPI["components"]["schemas"][reference.rpartition("/")[2]]
    return jsonschema_rs.Draft7Validator(schema | {"additionalProperties": False}, validate_formats=True)
