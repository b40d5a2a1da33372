"""What a message on the command topic is heard as."""

import json
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_fsm.domain.commands import CancelRun, RequestTraining, RetryRun
from training_fsm.domain.decide import NAMESPACE
from training_fsm.domain.inbound import CommandMalformed, CommandReceived, LetterReceived
from training_fsm.messaging.command_listener import COMMAND_BYTES_MAX, hear_command
from training_fsm.messaging.message import Message
from training_fsm.messaging.strict_json import DEPTH_MAX

TOPIC = "requested.train-model"
CE = {"ce_specversion": "1.0", "ce_id": "42", "ce_source": "/desk/7", "ce_type": "cancel_run"}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}


def _message(value: object, headers: dict[str, str | bytes] | None = None, key: bytes | None = None) -> Message:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    pairs = tuple(
        (name, content.encode() if isinstance(content, str) else content) for name, content in (headers or {}).items()
    )
    return Message(TOPIC, 3, 17, 1_764_000_000_000, key, raw, pairs)


def _reason(heard: object) -> str:
    match heard:
        case CommandMalformed(reason=reason):
            return reason
        case LetterReceived(event=event):
            return event.reason
        case _:
            pytest.fail(f"heard {heard}")


def test_a_plain_object_is_a_command() -> None:
    """Without headers the topic is the source and the message's place and bytes make the id."""
    message = _message({"type": "cancel_run", "run_id": "r1"})
    assert hear_command(message) == CommandReceived(f"kafka:{TOPIC}", message.digest, CancelRun(run_id="r1"))


def test_a_binary_cloudevent_is_a_command() -> None:
    """Attributes are headers, in any case; the value is the data."""
    headers = {name.upper() if name == "ce_id" else name: text for name, text in CE.items()}
    heard = hear_command(_message({"actor": "ann", "why": "typo"}, headers, key=b"r1"))
    assert heard == CommandReceived("/desk/7", "42", CancelRun(run_id="r1", actor="ann", why="typo"))


def test_a_structured_cloudevent_is_a_command() -> None:
    """Attributes and data are one JSON object."""
    body = {"specversion": "1.0", "id": "42", "source": "s", "type": "retry_run", "data": {"run_id": "r1"}}
    assert hear_command(_message(body, STRUCTURED)) == CommandReceived("s", "42", RetryRun(run_id="r1"))


def test_a_request_carries_its_fields_beside_type_and_run(request_fields: dict[str, object]) -> None:
    """A user's page of YAML as JSON, with `type` on top."""
    heard = hear_command(_message({"type": "request_training", "run_id": "r1"} | request_fields))
    assert isinstance(heard, CommandReceived)
    assert isinstance(heard.command, RequestTraining)
    assert (heard.command.run_id, heard.command.request.symbol) == ("r1", "EURUSD")


def test_a_request_without_a_run_id_gets_one_from_source_and_command_id(request_fields: dict[str, object]) -> None:
    """The same command, sent twice, means the same run."""
    headers = CE | {"ce_type": "request_training"}
    heard = [hear_command(_message(request_fields, headers, key)) for key in (None, b"")]
    for one in heard:
        assert isinstance(one, CommandReceived)
        assert one.command.run_id == str(uuid.uuid5(NAMESPACE, "/desk/7/42"))


def test_headers_of_others_need_not_be_text() -> None:
    """A tracing library's binary header is none of our business."""
    heard = hear_command(_message({"run_id": "r1"}, CE | {"x-trace": b"\xff\xfe"}))
    assert isinstance(heard, CommandReceived)


@pytest.mark.parametrize(
    ("body", "headers", "key", "words"),
    [
        ({"run_id": "r1"}, CE, b"r2", "run_id: the message's key says 'r2', its data 'r1'; expected the same"),
        ({}, CE, None, "run_id: expected the id of a run, in the data or as the message's key"),
        ({"run_id": 7}, CE, None, "run_id: expected text, got 7"),
        ({"run_id": "a b"}, CE, None, "run_id: expected 1 to 64 letters, digits, '.', '_' or '-', got 'a b'"),
        ({"run_id": "r1\n"}, CE, None, "run_id: expected 1 to 64 letters"),
        ({"run_id": "x" * 65}, CE, None, "run_id: expected 1 to 64 letters"),
        ({"run_id": "r1"}, CE | {"ce_type": "dance"}, None, "type: expected one of request_training, cancel_run"),
        ({"run_id": "r1", "whi": "typo"}, CE, None, "whi: unknown; did you mean why?"),
        ({"run_id": "r1", "why": 3}, CE, None, "why: expected a valid string, got 3"),
        ({"run_id": "r1", "why": "x" * 2001}, CE, None, "why: expected at most 2000 characters"),
    ],
)
def test_a_readable_command_that_is_wrong_is_refused_for_its_sender(
    body: object, headers: dict[str, str], key: bytes | None, words: str
) -> None:
    """Source and id are known, so the reason goes to whoever sent it."""
    heard = hear_command(_message(body, headers, key))
    assert isinstance(heard, CommandMalformed)
    assert (heard.source, heard.command_id) == ("/desk/7", "42")
    assert words in heard.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agent": {"seed": "7"}}, "agent.seed: expected a valid integer, got '7'"),
        ({"timeframe": "3h"}, "timeframe: expected "),
        ({"features": {"semver": "1.0.0"}}, "features.feature_definitions: missing"),
        ({"evaluation": {"gate": [{"metric": "sharpe"}]}}, "evaluation.gate[0]: expected min, max or both"),
        ({"base_timeframe": "4h"}, "base_timeframe: expected one below timeframe 4h, got 4h"),
        ({"env": {"fee": 1.5}}, "env.fee: expected less than 1, got 1.5"),
        ({"range": {"start": "2018-01-01T00:00:00Z", "end": "2017-01-01T00:00:00Z"}}, "range"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(
    change: dict[str, object], words: str, request_fields: dict[str, object]
) -> None:
    """The reason says which field, what was expected and what was given."""
    heard = hear_command(_message({"type": "request_training", "run_id": "r1"} | request_fields | change))
    assert isinstance(heard, CommandMalformed)
    assert heard.run_id == "r1"
    assert words in heard.reason


DEEP = DEPTH_MAX + 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "value: expected JSON"),
        (b"not json", "value: expected JSON, Expecting value at line 1 column 1"),
        (b'{"type": "cancel_run"', "value: expected JSON"),
        (b"[1, 2]", "value: expected a JSON object, got list"),
        (b'"cancel_run"', "value: expected a JSON object, got str"),
        (b"null", "value: expected a JSON object, got NoneType"),
        (b"\xff\xfe{}", "value: expected UTF-8 text, byte 0 is not"),
        (b'{"type": "a", "x": NaN}', "value: expected finite numbers, got NaN"),
        (b'{"type": "a", "x": -Infinity}', "value: expected finite numbers, got -Infinity"),
        (b'{"type": "a", "x": 1e999}', "value: expected numbers that a double can hold, got 1e999"),
        (b'{"type": "a", "x": ' + b"9" * 401 + b"}", "value: expected integers of at most 400 digits, got 401"),
        (b'{"type": "a", "x": ' + b"9" * 9000 + b"}", "value: expected integers of at most 400 digits, got 9000"),
        (b'{"type": "a", "type": "b"}', "type: the key stands twice"),
        (b'{"type": "a", "x": {"k\\u0000": 1, "k\\u0000": 1}}', "k\ufffd: the key stands twice"),
        (b'{"type": "a", "x": [{"y": "a\\u0000b"}]}', "x[0].y: expected text without NUL characters"),
        (b'{"type": "a", "x": {"y\\u0000": 1}}', "a key in x: expected text without NUL characters"),
        (b'{"type": "a\x00"}', "value: expected JSON, Invalid control character"),
        (b'{"type": "a", "x": "\\ud800"}', "x: expected Unicode text, a lone surrogate is none"),
        (b'{"x": 1}', "type: expected one of request_training, cancel_run, pause_run"),
        (b'{"type": 7}', "type: expected one of"),
        (b'{"type": "' + b"x" * 101 + b'"}', "type: expected one of"),
        (
            b'{"type": "a", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
            f"value: expected JSON of at most {DEPTH_MAX} levels",
        ),
        (
            b'{"type": "a", "x": ' + b"[" * 400 + b"]" * 400 + b"}",
            f"value: expected JSON of at most {DEPTH_MAX} levels",
        ),
        (b"[" * 200_000, f"value: expected JSON of at most {DEPTH_MAX} levels"),
        (b"{" * (COMMAND_BYTES_MAX + 1), f"value: expected at most {COMMAND_BYTES_MAX} bytes, got 262145"),
        (bytes(range(256)) * 4096, "value: expected at most 262144 bytes, got 1048576"),
    ],
    ids=lambda part: repr(part)[:40],
)
def test_what_nobody_can_read_becomes_a_letter(value: bytes, words: str) -> None:
    """The letter holds the whole bytes and says what was expected."""
    heard = hear_command(_message(value))
    assert isinstance(heard, LetterReceived)
    assert heard.event.reason.startswith(words)
    assert heard.message == value
    assert "\\u0000" not in heard.event.model_dump_json()


@pytest.mark.parametrize(
    ("body", "headers", "key", "words"),
    [
        ({}, CE | {"ce_specversion": "0.3"}, None, "specversion: expected 1.0, got '0.3'"),
        ({}, CE | {"ce_id": ""}, None, "id: expected text of 1 to 200 characters, got ''"),
        ({}, CE | {"ce_id": "x" * 201}, None, "id: expected text of 1 to 200 characters"),
        ({}, CE | {"ce_source": b"\xff"}, None, "header ce_source: expected UTF-8 text"),
        ({}, CE | {"ce_source": b"a\x00"}, None, "header ce_source: expected text without NUL characters"),
        ({}, CE, b"\xff", "key: expected UTF-8 text"),
        ({}, CE, b"\x00", "key: expected text without NUL characters"),
        ({"type": "retry_run"}, CE, None, "type: expected one of"),
        ({"id": "1", "type": "cancel_run"}, STRUCTURED, None, "data: expected an object"),
        (
            {"id": 1, "type": "cancel_run", "data": {}},
            STRUCTURED,
            None,
            "id: expected text of 1 to 200 characters, got 1",
        ),
        ({"specversion": 1, "type": "cancel_run", "data": {}}, STRUCTURED, None, "specversion: expected 1.0, got 1"),
    ],
)
def test_an_envelope_that_cannot_be_read_becomes_a_letter(
    body: object, headers: dict[str, str | bytes], key: bytes | None, words: str
) -> None:
    """Without a sure source and id nobody can be told."""
    assert words in _reason(hear_command(_message(body, headers, key)))
    assert isinstance(hear_command(_message(body, headers, key)), LetterReceived)


def test_as_much_as_may_come_is_read() -> None:
    """The greatest size and depth are inclusive."""
    body = b'{"type": "cancel_run", "run_id": "r1"}'
    assert isinstance(hear_command(_message(body.ljust(COMMAND_BYTES_MAX))), CommandReceived)
    nested = b'{"type": "cancel_run", "run_id": "r1", "x": ' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b"}"
    assert "x: unknown" in _reason(hear_command(_message(nested)))


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["ce_id", "ce_source", "ce_type", "content-type", "ce_specversion"]), st.binary(max_size=30)
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300)
@given(value=st.binary(max_size=200), headers=HEADERS, key=st.none() | st.binary(max_size=20))
def test_arbitrary_bytes_never_raise(value: bytes, headers: list[tuple[str, bytes]], key: bytes | None) -> None:
    """Whatever comes is heard as something that can be stored."""
    heard = hear_command(Message(TOPIC, 0, 0, 0, key, value, tuple(headers)))
    assert isinstance(heard, CommandReceived | CommandMalformed | LetterReceived)
    if isinstance(heard, LetterReceived):
        assert "\\u0000" not in heard.event.model_dump_json()


@settings(max_examples=300)
@given(
    data=st.dictionaries(st.sampled_from(["run_id", "actor", "why", "mode", "model", "agent", "features"]), JSON),
    type_=st.sampled_from(["request_training", "cancel_run", "retry_run", "other"]),
    structured=st.booleans(),
)
def test_arbitrary_objects_never_raise(data: dict[str, object], type_: str, structured: bool) -> None:
    """A reason for a sender can be stored, and is not longer than people read."""
    fields = {"type": type_} | ({"data": data} if structured else data)
    heard = hear_command(_message(fields, STRUCTURED if structured else None))
    assert isinstance(heard, CommandReceived | CommandMalformed | LetterReceived)
    if not isinstance(heard, CommandReceived):
        assert "\x00" not in _reason(heard)
        assert len(_reason(heard).encode()) < 20_000
