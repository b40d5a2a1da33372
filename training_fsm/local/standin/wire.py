"""What ingest and preprocess say on the wire: the request's model, the timeframes, the topics.

The names are the family's. Nothing here is shared with the rest of the package, on purpose: a neighbour that reads our
own types would agree with our mistakes.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, Field, JsonValue, field_validator, model_validator

REQUESTED_TOPIC = "requested.preprocess-data"
COMPLETED_TOPIC = "completed.preprocess-data"
ERROR_TOPIC = "error.preprocess-data"
RETRY_TOPIC = "retry.preprocess-data"
DEAD_LETTER_TOPIC = "dlq.preprocess-data"
COMPLETED_TOPIC_BY_CONTEXT = {
    "training": f"{COMPLETED_TOPIC}.offline",
    "backfill": f"{COMPLETED_TOPIC}.offline",
    "inference": f"{COMPLETED_TOPIC}.online",
    "catchup": f"{COMPLETED_TOPIC}.catchup",
}
TOPICS = (
    REQUESTED_TOPIC,
    COMPLETED_TOPIC,
    *sorted(set(COMPLETED_TOPIC_BY_CONTEXT.values())),
    ERROR_TOPIC,
    RETRY_TOPIC,
    DEAD_LETTER_TOPIC,
)


class Timeframe(StrEnum):
    """The family's timeframes, shortest first; `1M` is a month."""

    TICK = "tick"
    MINUTE_1 = "1m"
    MINUTE_5 = "5m"
    MINUTE_15 = "15m"
    MINUTE_30 = "30m"
    HOUR_1 = "1h"
    HOUR_4 = "4h"
    DAY_1 = "1d"
    WEEK_1 = "1w"
    MONTH_1 = "1M"

    def is_above(self, other: "Timeframe") -> bool:
        """Say whether this timeframe is longer than `other`."""
        order = list(Timeframe)
        return order.index(self) > order.index(other)


def _as_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("expected a time of the years 1 to 9999 in UTC") from error


UtcDatetime = Annotated[datetime, AfterValidator(_as_utc)]
"""A moment in UTC; one without a zone is taken to be UTC."""


class FeatureDefinition(BaseModel):
    """One feature and the parameter sets to compute it with."""

    name: str
    enabled: bool
    derivatives: list[int]
    raw_parameter_sets: list[dict[str, JsonValue]] = []
    parsed_parameter_sets: dict[str, JsonValue] = {}


class FeatureConfigVersionInfo(BaseModel):
    """A versioned feature configuration; `hash` is made by whoever asks and is used as it was sent."""

    semver: str
    hash: str
    created_at: datetime
    feature_definitions: list[FeatureDefinition]
    description: str | None = None


class PreprocessingRequest(BaseModel):
    """`FeaturePreprocessingRequest` as preprocess reads it; unknown fields are ignored."""

    symbol: str
    base_timeframe: Timeframe
    target_timeframes: list[Timeframe] = Field(min_length=1)
    feature_config_version_info: FeatureConfigVersionInfo
    start_time: UtcDatetime
    end_time: UtcDatetime
    request_id: str = Field(default_factory=lambda: str(uuid4()))
    force_recompute: bool = False
    incremental_mode: bool = True
    processing_context: str = "training"
    skip_existing_features: bool = True
    materialize_online: bool = False
    batch_size: int | None = None
    parallel_processing: bool = True

    @field_validator("symbol")
    @classmethod
    def _normalise_symbol(cls, symbol: str) -> str:
        symbol = symbol.strip().upper()
        if not symbol:
            raise ValueError("symbol cannot be empty")
        return symbol

    @field_validator("request_id")
    @classmethod
    def _make_up_request_id(cls, request_id: str) -> str:
        return request_id or str(uuid4())

    @model_validator(mode="after")
    def _check_what_fields_say_together(self) -> Self:
        if not any(definition.enabled for definition in self.feature_config_version_info.feature_definitions):
            raise ValueError("at least one feature definition must be enabled")
        if self.end_time <= self.start_time:
            raise ValueError("end_time must be after start_time")
        for target in self.target_timeframes:
            if not target.is_above(self.base_timeframe):
                raise ValueError(
                    f"target timeframe {target.value} must be higher than base timeframe {self.base_timeframe.value}"
                )
        return self

    @property
    def enabled_definitions(self) -> list[FeatureDefinition]:
        """The definitions that are to be computed."""
        return [d for d in self.feature_config_version_info.feature_definitions if d.enabled]


class IngestRequest(PreprocessingRequest):
    """The same request as ingest lets it in: only the four contexts that have a topic of their own."""

    processing_context: Literal["training", "inference", "backfill", "catchup"] = "training"
