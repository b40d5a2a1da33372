"""What we read of preprocess's messages. They carry more, which is ignored."""

from typing import ClassVar, Literal, cast

from pydantic import Field, JsonValue, create_model

from training_fsm.domain.model import Model
from training_fsm.messaging.preprocessing_listener import REQUEST_ID_CHARACTERS_MAX
from training_fsm.messaging.topics import PREPROCESS_COMPLETED, PREPROCESS_ERROR


class PreprocessMessage(Model, extra="allow"):
    """A message about a request for features of ours."""

    event_type: ClassVar[str]
    """The header that tells the messages of a topic apart."""
    topics: ClassVar[tuple[str, ...]]
    request_id: str = Field(max_length=REQUEST_ID_CHARACTERS_MAX)
    """The one that ingest was given; the only link to a run. Another's is no error and is ignored."""


class PreprocessingCompleted(PreprocessMessage):
    """The features of a request are computed. It proves nothing: the feature store is looked at before a run trains."""

    event_type = "preprocessing_completed"
    # One that could not be delivered on its own topic comes on the other.
    topics = (*PREPROCESS_COMPLETED, PREPROCESS_ERROR)
    total_features_computed: int = 0
    success_details: dict[str, JsonValue] = Field(default_factory=dict)


class PreprocessingError(PreprocessMessage):
    """The request could not be done."""

    event_type = "preprocessing_error"
    topics = (PREPROCESS_ERROR,)
    error_message: str
    failed_step: str | None = None
    error_details: dict[str, JsonValue] = Field(default_factory=dict)


class FeatureValidationError(PreprocessMessage):
    """Features of the request are not known, or not with these parameters."""

    event_type = "feature_validation_error"
    topics = (PREPROCESS_ERROR,)
    invalid_features: tuple[str, ...]
    validation_errors: dict[str, JsonValue] = Field(default_factory=dict)


PREPROCESS_MESSAGES: tuple[type[PreprocessMessage], ...] = (
    PreprocessingCompleted,
    PreprocessingError,
    FeatureValidationError,
)


def preprocess_headers(message: type[PreprocessMessage]) -> type[Model]:
    """The one header that we read."""
    fields: dict[str, object] = {"event_type": (Literal[message.event_type], ...)}
    made = create_model(f"{message.__name__}Headers", __base__=_Headers, **fields)  # type: ignore[call-overload]
    return cast(type[Model], made)


class _Headers(Model, extra="allow"):
    """Others are ignored."""
