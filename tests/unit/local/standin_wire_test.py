from datetime import UTC, datetime

import pytest
from pydantic import JsonValue, ValidationError

from training_fsm.local.standin.wire import IngestRequest, PreprocessingRequest, Timeframe


def _body(**changes: JsonValue) -> dict[str, JsonValue]:
    definition: JsonValue = {"name": "rsi", "enabled": True, "derivatives": []}
    version: JsonValue = {
        "semver": "1.0.0",
        "hash": "0123456789",
        "created_at": "2026-01-01T00:00:00Z",
        "feature_definitions": [definition],
    }
    body: dict[str, JsonValue] = {
        "symbol": "EURUSD",
        "base_timeframe": "1h",
        "target_timeframes": ["4h"],
        "feature_config_version_info": version,
        "start_time": "2017-01-01T00:00:00Z",
        "end_time": "2018-01-01T00:00:00Z",
    }
    return body | changes


def test_defaults_are_the_familys() -> None:
    """A request of the required fields only gets the family's defaults and an id."""
    request = IngestRequest.model_validate(_body())
    assert request.processing_context == "training"
    assert not request.force_recompute
    assert request.incremental_mode
    assert request.skip_existing_features
    assert not request.materialize_online
    assert request.batch_size is None
    assert request.parallel_processing
    assert len(request.request_id) == 36


def test_an_empty_request_id_gets_one() -> None:
    """An empty id is replaced by one of the server's own, two requests by two."""
    first, second = (IngestRequest.model_validate(_body(request_id="")) for _ in range(2))
    assert first.request_id
    assert first.request_id != second.request_id


def test_the_symbol_is_trimmed_and_raised() -> None:
    """A symbol in small letters between blanks is taken as the family writes it."""
    assert IngestRequest.model_validate(_body(symbol=" eurusd\n")).symbol == "EURUSD"


def test_a_time_without_zone_is_utc() -> None:
    """A time without a zone means UTC, one of another zone is converted."""
    request = IngestRequest.model_validate(
        _body(start_time="2017-01-01T00:00:00", end_time="2017-01-01T03:00:00+01:00")
    )
    assert request.start_time == datetime(2017, 1, 1, tzinfo=UTC)
    assert request.end_time.isoformat() == "2017-01-01T02:00:00+00:00"


@pytest.mark.parametrize("target", ["1h", "30m", "tick"])
def test_every_target_must_be_above_the_base(target: str) -> None:
    """A target at or below the base is refused, also when another target is fine."""
    with pytest.raises(ValidationError, match=f"target timeframe {target} must be higher than base timeframe 1h"):
        IngestRequest.model_validate(_body(target_timeframes=["4h", target]))


def test_a_month_is_above_a_minute() -> None:
    """`1M` is a month and `1m` a minute."""
    assert Timeframe("1M").is_above(Timeframe("1w"))
    assert Timeframe("1w").is_above(Timeframe("1m"))
    assert not Timeframe("1m").is_above(Timeframe("1m"))


def test_only_ingest_knows_four_contexts() -> None:
    """An unknown context does not pass ingest; preprocess, met on Kafka, takes it."""
    odd = _body(processing_context="other")
    with pytest.raises(ValidationError, match="processing_context"):
        IngestRequest.model_validate(odd)
    assert PreprocessingRequest.model_validate(odd).processing_context == "other"
