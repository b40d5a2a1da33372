"""What neighbours tell us on their own topics."""

from pydantic import JsonValue

from training_fsm.domain.model import Model


class PreprocessCompleted(Model):
    """Preprocess says that the features of a request are computed. It proves nothing."""

    request_id: str
    total_features_computed: int
    success_details: dict[str, JsonValue]


class PreprocessFailed(Model):
    """Preprocess says that it could not do a request."""

    request_id: str
    error: str
    """Their `event_type`."""
    words: str
    detail: str | None = None


Notification = PreprocessCompleted | PreprocessFailed
