"""Preprocess's answers -> notifications. What we did not ask for is no error."""

from pydantic import JsonValue

from training_fsm.domain.inbound import Inbound, NotificationReceived
from training_fsm.domain.notifications import PreprocessCompleted, PreprocessFailed
from training_fsm.messaging.message import Message, dead_letter
from training_fsm.messaging.strict_json import parse
from training_fsm.messaging.topics import PREPROCESS_COMPLETED, PREPROCESS_ERROR

PREPROCESS_TOPICS = (*PREPROCESS_COMPLETED, PREPROCESS_ERROR)
REQUEST_ID_CHARACTERS_MAX = 200
COMPLETION_BYTES_MAX = 65_536
"""Beyond it a completion's details stay out of the log: an event has a greatest size."""


def hear_preprocess(message: Message) -> Inbound | None:
    """The notification in a message; None for one that cannot concern us."""
    try:
        body = parse(message.value)
    except ValueError as error:
        return dead_letter(message, str(error))
    if not isinstance(body, dict):
        return dead_letter(message, f"value: expected a JSON object, got {type(body).__name__}")
    event_type = dict(message.headers).get("event_type", b"").decode("utf-8", "replace").replace("\x00", "")
    # A completion that could not be delivered on its own topic comes on this one.
    if message.topic == PREPROCESS_ERROR and event_type != "preprocessing_completed":
        return _failed(message, body, event_type)
    request_id = _request_id(body)
    if request_id is None:
        return dead_letter(message, "request_id: expected text, it is the only link to a run")
    total, details = body.get("total_features_computed", 0), body.get("success_details", {})
    if len(message.value) > COMPLETION_BYTES_MAX:
        details = {"left_out": f"the message has {len(message.value)} bytes"}
    completed = PreprocessCompleted(
        request_id=request_id,
        total_features_computed=total if isinstance(total, int) else 0,
        success_details=details if isinstance(details, dict) else {"unreadable": str(details)[:1000]},
    )
    return NotificationReceived(message.digest, completed)


def _failed(message: Message, body: dict[str, JsonValue], event_type: str) -> NotificationReceived | None:
    request_id = _request_id(body)
    if request_id is None:
        return None  # a resampling error names no request: the deadline catches it
    match event_type:
        case "preprocessing_error":
            words = body.get("error_message") or "no words"
            detail = {"failed_step": body.get("failed_step")} | _object(body.get("error_details"))
        case "feature_validation_error":
            words = f"invalid features: {body.get('invalid_features')}"
            detail = _object(body.get("validation_errors"))
        case _:
            return None  # a message that could not be delivered elsewhere, or another service's
    failed = PreprocessFailed(
        request_id=request_id,
        error=event_type,
        words=str(words)[:2000],
        detail="\n".join(f"{name}: {text}" for name, text in detail.items() if text is not None)[:8000] or None,
    )
    return NotificationReceived(message.digest, failed)


def _request_id(body: dict[str, JsonValue]) -> str | None:
    request_id = body.get("request_id")
    return request_id if isinstance(request_id, str) and len(request_id) <= REQUEST_ID_CHARACTERS_MAX else None


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}
