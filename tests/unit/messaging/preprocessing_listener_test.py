"""What preprocess's messages are heard as: each shape that the family sends."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from training_fsm.domain.events import FeaturesReady
from training_fsm.domain.inbound import LetterReceived, NotificationReceived
from training_fsm.domain.notifications import Notification, PreprocessCompleted, PreprocessFailed
from training_fsm.messaging.message import Message
from training_fsm.messaging.preprocessing_listener import COMPLETION_BYTES_MAX, PREPROCESS_TOPICS, hear_preprocess

OFFLINE, ERROR = "completed.preprocess-data.offline", "error.preprocess-data"
ID = "2f0d6f0e-5d1c-5f1e-8a51-1f6e7d9f5a10"
COMPLETION: dict[str, JsonValue] = {
    "request_id": ID,
    "symbol": "EURUSD",
    "processing_context": "training",
    "total_features_computed": 6,
    "timeframes_processed": ["4h"],
    "feature_definitions_count": 2,
    "target_timeframes": ["4h"],
    "base_timeframe": "1h",
    "start_time": "2017-01-01T00:00:00+00:00",
    "end_time": "2018-01-01T00:00:00+00:00",
    "timestamp": "2026-11-24T12:00:00",
    "success_details": {"features_4h": 6, "records_4h": 1500},
}
FAILURE: dict[str, JsonValue] = {
    "request_id": ID,
    "symbol": "EURUSD",
    "processing_context": "training",
    "error_message": "no market data",
    "error_details": {"timeframe": "4h"},
    "failed_step": "feature_warmup",
    "target_timeframes": ["4h"],
    "base_timeframe": "1h",
}


def _message(topic: str, value: object, event_type: str | bytes | None = None) -> Message:
    raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    kind = event_type.encode() if isinstance(event_type, str) else event_type
    return Message(topic, 0, 5, 1, ID.encode(), raw, () if kind is None else (("event_type", kind),))


def _news(message: Message) -> Notification:
    heard = hear_preprocess(message)
    assert isinstance(heard, NotificationReceived)
    assert heard.message_id == message.digest
    return heard.notification


@pytest.mark.parametrize("topic", [OFFLINE, "completed.preprocess-data"])
@pytest.mark.parametrize(
    "details",
    [
        {},
        {"features_4h": 6, "records_4h": 1500},
        {"reason": "all_features_exist", "skipped": True},
        {"reason": "resampling_only", "resampling_completed": True, "features_skipped": True},
    ],
)
def test_each_kind_of_completion_is_heard(topic: str, details: dict[str, JsonValue]) -> None:
    """Its details are kept as they came; whether they are true is seen later."""
    body = COMPLETION | {"success_details": details}
    expected = PreprocessCompleted(request_id=ID, total_features_computed=6, success_details=details)
    assert _news(_message(topic, body, "preprocessing_completed")) == expected
    assert _news(_message(topic, body)) == expected


def test_a_completion_that_could_not_be_delivered_is_heard_where_it_ended() -> None:
    """Preprocess puts what its own topic refused onto the error topic; it is no failure."""
    news = _news(_message(ERROR, COMPLETION, "preprocessing_completed"))
    assert isinstance(news, PreprocessCompleted)


def test_a_completion_may_lack_all_but_its_request() -> None:
    """Only the request id is needed; a field of another kind is no reason to leave a run waiting."""
    assert _news(_message(OFFLINE, {"request_id": ID})) == PreprocessCompleted(
        request_id=ID, total_features_computed=0, success_details={}
    )
    odd = {"request_id": ID, "total_features_computed": "six", "success_details": "fine"}
    assert _news(_message(OFFLINE, odd)) == PreprocessCompleted(
        request_id=ID, total_features_computed=0, success_details={"unreadable": "fine"}
    )


def test_the_details_of_a_huge_completion_stay_out_of_the_log() -> None:
    """The run goes on, and its event keeps a bound."""
    news = _news(_message(OFFLINE, COMPLETION | {"success_details": {"x": "y" * COMPLETION_BYTES_MAX}}))
    assert isinstance(news, PreprocessCompleted)
    assert news.success_details.keys() == {"left_out"}
    numbers = COMPLETION | {"success_details": {"x": json.loads("[" + ",".join(["1e15"] * 12_000) + "]")}}
    largest = _news(_message(OFFLINE, json.dumps(numbers).replace("1000000000000000.0", "1e15").encode()))
    assert isinstance(largest, PreprocessCompleted)
    assert len(FeaturesReady.model_validate(largest.model_dump()).model_dump_json()) < 524_288


def test_a_preprocessing_error_is_heard_in_its_words() -> None:
    """With the step that failed and its details."""
    assert _news(_message(ERROR, FAILURE, "preprocessing_error")) == PreprocessFailed(
        request_id=ID,
        error="preprocessing_error",
        words="no market data",
        detail="failed_step: feature_warmup\ntimeframe: 4h",
    )


def test_a_validation_error_names_the_features() -> None:
    """What was wrong with each is the detail."""
    body = {
        "request_id": ID,
        "symbol": "EURUSD",
        "invalid_features": ["rsj"],
        "validation_errors": {"rsj": "unknown feature"},
        "total_features_requested": 2,
    }
    assert _news(_message(ERROR, body, "feature_validation_error")) == PreprocessFailed(
        request_id=ID,
        error="feature_validation_error",
        words="invalid features: ['rsj']",
        detail="rsj: unknown feature",
    )


def test_an_error_without_words_says_so() -> None:
    """Their message may be missing."""
    news = _news(_message(ERROR, {"request_id": ID}, "preprocessing_error"))
    assert news == PreprocessFailed(request_id=ID, error="preprocessing_error", words="no words")


@pytest.mark.parametrize(
    ("body", "event_type"),
    [
        ({"symbol": "EURUSD", "base_timeframe": "1h", "error_message": "no bars"}, "resampling_error"),
        (COMPLETION, "resampled_data"),
        (FAILURE, None),
        (FAILURE, b"\xff"),
        ({"another": "service's"}, "preprocessing_error"),
    ],
    ids=["resampling", "undelivered data", "no type", "no text", "no request"],
)
def test_what_cannot_concern_a_run_of_ours_is_no_error(
    body: dict[str, JsonValue], event_type: str | bytes | None
) -> None:
    """The topic carries other things too: the deadline catches what names no request."""
    assert hear_preprocess(_message(ERROR, body, event_type)) is None


@pytest.mark.parametrize("topic", PREPROCESS_TOPICS)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "value: expected JSON"),
        (b"[]", "value: expected a JSON object, got list"),
        (b'{"request_id": "\\u0000"}', "request_id: expected text without NUL characters"),
        (b'{"request_id": "a", "request_id": "b"}', "request_id: the key stands twice"),
    ],
)
def test_what_nobody_can_read_becomes_a_letter(topic: str, value: bytes, words: str) -> None:
    """It may have been the answer that a run waits for, so it is kept."""
    heard = hear_preprocess(_message(topic, value))
    assert isinstance(heard, LetterReceived)
    assert heard.event.reason.startswith(words)


@pytest.mark.parametrize("request_id", [None, 7, "x" * 201])
def test_a_completion_that_names_no_request_becomes_a_letter(request_id: object) -> None:
    """By contract each names one."""
    heard = hear_preprocess(_message(OFFLINE, COMPLETION | {"request_id": request_id}))
    assert isinstance(heard, LetterReceived)
    assert heard.event.reason.startswith("request_id: expected text")


@settings(max_examples=300)
@given(
    topic=st.sampled_from(PREPROCESS_TOPICS),
    value=st.binary(max_size=100)
    | st.dictionaries(
        st.sampled_from(["request_id", "error_message", "error_details", "success_details", "validation_errors"]),
        st.none() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()),
    ).map(lambda fields: json.dumps(fields).encode()),
    event_type=st.sampled_from([b"preprocessing_error", b"feature_validation_error", b"", b"\xff"]),
)
def test_arbitrary_messages_never_raise(topic: str, value: bytes, event_type: bytes) -> None:
    """Whatever comes is heard as something that can be stored, or as nothing."""
    heard = hear_preprocess(Message(topic, 0, 0, 0, None, value, (("event_type", event_type),)))
    assert heard is None or isinstance(heard, NotificationReceived | LetterReceived)
