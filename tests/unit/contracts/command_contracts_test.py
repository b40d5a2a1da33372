"""Commands against their schemas: what a schema takes, the listener hears as that command, and nothing else."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from training_fsm.contracts.files import contract_files
from training_fsm.domain.commands import COMMAND_TYPES, RequestTraining
from training_fsm.domain.inbound import CommandMalformed, CommandReceived
from training_fsm.local.stack import EXAMPLES
from training_fsm.messaging.command_listener import hear_command
from training_fsm.messaging.message import Message

Fields = dict[str, JsonValue]
Contract = Callable[[str], jsonschema_rs.Draft202012Validator]

DEMO = Path(__file__).parents[3] / "training_fsm" / "cli" / "demo" / "request.yaml"
REQUESTS = [*sorted(EXAMPLES.glob("*.yaml")), DEMO]
OTHERS = [name for name in COMMAND_TYPES if name != RequestTraining.type]
ASYNCAPI = yaml.safe_load(contract_files()["asyncapi.yaml"])


def _heard(value: object, headers: dict[str, str] | None = None) -> CommandReceived | CommandMalformed:
    pairs = tuple((name, text.encode()) for name, text in (headers or {}).items())
    heard = hear_command(Message("requested.train-model", 0, 1, 2, b"r-1", json.dumps(value).encode(), pairs))
    assert isinstance(heard, CommandReceived | CommandMalformed)
    return heard


def _request(path: Path) -> Fields:
    """A request as JSON; YAML reads times by itself."""
    fields: Fields = json.loads(
        json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), default=datetime.isoformat)
    )
    return fields


@pytest.fixture(params=REQUESTS, ids=lambda path: path.stem)
def request_of_ours(request: pytest.FixtureRequest) -> Fields:
    """A request that is shipped to be copied, of either mode."""
    return _request(request.param)


def test_shipped_requests_are_of_the_contract(request_of_ours: Fields, contract: Contract) -> None:
    """With and without the id of the run beside them."""
    for value in (request_of_ours, request_of_ours | {"run_id": "r-1"}):
        contract("commands/request_training").validate(value)
        assert isinstance(_heard(value), CommandReceived)


def test_altered_requests_are_refused_by_both(request_of_ours: Fields, contract: Contract) -> None:
    """Any value of another kind, and any key that nobody knows: the schema and the listener agree."""
    validator, altered = contract("commands/request_training"), 0
    for other in _altered(request_of_ours):
        altered += 1
        assert not validator.is_valid(other), other
        assert isinstance(_heard(other), CommandMalformed), other
    assert altered > 15


def _altered(value: JsonValue) -> Iterator[Fields]:
    """The object with one of its parts replaced, or with a key more; free-form objects are left as they are."""
    assert isinstance(value, dict)
    yield value | {"unheard_of": 1}
    for name, part in value.items():
        if name not in ("type", "mode"):  # another of them is another command
            yield value | {name: [[]]}
        if isinstance(part, dict):
            yield from (value | {name: other} for other in _altered(part))


def test_the_two_modes_are_told_apart(contract: Contract) -> None:
    """A continued request may leave out what the parent has, one from scratch may not; neither takes the other's."""
    scratch, continued = _request(EXAMPLES / "eurusd-4h.yaml"), _request(EXAMPLES / "continue.yaml")
    validator = contract("commands/request_training")
    for wrong in (
        {name: value for name, value in scratch.items() if name != "symbol"},
        scratch | {"parent": "models:/m/1"},
        scratch | {"mode": "continue"},
        {name: value for name, value in continued.items() if name != "parent"},
        continued | {"mode": "from_scratch"},
        continued | {"symbol": None},
    ):
        assert not validator.is_valid(wrong), wrong
        assert isinstance(_heard(wrong), CommandMalformed), wrong


def _values(schema: Fields) -> st.SearchStrategy[JsonValue]:
    """Values of a field's schema, of the kinds that commands have."""
    match schema:
        case {"const": value}:
            return st.just(value)
        case {"type": "string", "pattern": str(pattern)}:
            return st.from_regex(pattern, fullmatch=True, alphabet=st.characters(codec="ascii"))
        case {"type": "string"}:
            low, high = schema.get("minLength", 0), schema.get("maxLength")
            return st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=low, max_size=high)
        case {"type": "integer"}:
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return st.integers(low, schema.get("maximum"))
        case {"type": "boolean"}:
            return st.booleans()
        case _:
            pytest.fail(f"commands have a new kind of field: {schema}")


def _commands(name: str) -> st.SearchStrategy[Fields]:
    schema = json.loads(contract_files()[f"commands/{name}.json"])
    fields = {field: _values(kind) for field, kind in schema["properties"].items()}
    required = {"type", *schema.get("required", [])}
    return st.fixed_dictionaries(
        {field: values for field, values in fields.items() if field in required},
        optional={field: values for field, values in fields.items() if field not in required | {"run_id"}},
    )


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_schema_takes_is_that_command(name: str, contract: Contract) -> None:
    """Plain, as a binary CloudEvent and as a structured one; the three messages of the AsyncAPI document."""
    command, validator = COMMAND_TYPES[name], contract(f"commands/{name}")

    @settings(max_examples=25, deadline=None)
    @given(_commands(name))
    def holds(value: Fields) -> None:
        data = {field: part for field, part in value.items() if field != "type"}
        event: Fields = {"specversion": "1.0", "id": "7", "source": "/desk", "type": name, "time": "…", "data": data}
        binary = {"ce_specversion": "1.0", "ce_id": "7", "ce_source": "/desk", "ce_type": name, "traceparent": "…"}
        for sent, headers, packing in (
            (value, {}, ""),
            (data, binary, ""),
            (event, {"content-type": "application/cloudevents+json; charset=utf-8"}, ".structured"),
        ):
            assert packing or validator.is_valid(sent)
            _asyncapi(name + packing, "payload").validate(sent)
            _asyncapi(name + packing, "headers").validate(headers)
            heard = _heard(sent, headers)
            assert isinstance(heard, CommandReceived), heard
            assert heard.command == command.model_validate(data | {"run_id": "r-1"})

    holds()


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_schema_refuses_is_no_command(name: str, contract: Contract) -> None:
    """A field of another kind, a field more, a field that is missing, and bounds that are passed."""
    validator = contract(f"commands/{name}")
    schema = json.loads(contract_files()[f"commands/{name}.json"])

    @settings(max_examples=5, deadline=None)
    @given(_commands(name))
    def holds(value: Fields) -> None:
        wrong: list[Fields] = [value | {"unheard_of": 1}, value | {"type": "dream"}, value | {"run_id": "/"}]
        wrong += [{other: value[other] for other in value if other != field} for field in schema.get("required", [])]
        for field, kind in schema["properties"].items():
            wrong.append(value | {field: [[]]})
            if field not in ("type", "run_id"):  # null is heard as absent there
                wrong.append(value | {field: None})
            if "maxLength" in kind:
                wrong.append(value | {field: "x" * (kind["maxLength"] + 1)})
            if "minLength" in kind:
                wrong.append(value | {field: ""})
            if "maximum" in kind:
                wrong.append(value | {field: kind["maximum"] + 1})
            if "exclusiveMinimum" in kind:
                wrong.append(value | {field: kind["exclusiveMinimum"]})
        for other in wrong:
            assert not validator.is_valid(other), other
            heard = hear_command(Message("t", 0, 1, 2, b"r-1", json.dumps(other).encode()))  # may be a letter
            assert not isinstance(heard, CommandReceived), other

    holds()


def _asyncapi(message: str, part: str) -> jsonschema_rs.Draft7Validator:
    found = ASYNCAPI["components"]["messages"][message][part]
    return jsonschema_rs.Draft7Validator(found | {"components": ASYNCAPI["components"]}, validate_formats=True)
