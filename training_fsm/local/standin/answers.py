"""Preprocess's answers: a request in, the messages that the real service would send out."""

import json
import logging
import time
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
from pydantic import JsonValue

from training_fsm.local.standin.feast_repository import FeastRepository
from training_fsm.local.standin.feature_views import ComputedView, compute_views, validation_errors
from training_fsm.local.standin.kafka import Outgoing
from training_fsm.local.standin.prices import SYMBOLS, load_prices, resample
from training_fsm.local.standin.wire import (
    COMPLETED_TOPIC,
    COMPLETED_TOPIC_BY_CONTEXT,
    ERROR_TOPIC,
    PreprocessingRequest,
    Timeframe,
)

_log = logging.getLogger("standin.preprocess")


@dataclass(frozen=True)
class _Computed:
    """What came of one timeframe."""

    features: int
    records: int
    already_there: bool = False


def answer(request: PreprocessingRequest, repository: FeastRepository) -> Outgoing:
    """Compute and store what is asked for, and say what came of it: a completion or one error."""
    definitions = request.enabled_definitions
    if invalid := validation_errors(definitions):
        return _feature_validation_error(request, invalid)
    try:
        computed = {timeframe: _fill(request, timeframe, repository) for timeframe in request.target_timeframes}
    except Exception as error:  # noqa: BLE001 - whatever went wrong is answered on error.*, with its words
        _log.exception("failed request_id=%s", request.request_id)
        return _preprocessing_error(request, error)
    return _completion(request, {timeframe: done for timeframe, done in computed.items() if done.records})


def _fill(request: PreprocessingRequest, timeframe: Timeframe, repository: FeastRepository) -> _Computed:
    """Compute one timeframe and store the range asked for.

    Indicators run over the whole history, so that a value does not depend on the range that was asked for.
    """
    series = SYMBOLS.get(request.symbol)
    if series is None or series.base_timeframe != request.base_timeframe:
        return _Computed(features=0, records=0)
    started = time.perf_counter()
    bars = resample(load_prices(request.symbol), timeframe)
    whole_history = compute_views(request.enabled_definitions, bars, request.symbol, timeframe)
    views = [_of_range(view, request) for view in whole_history]
    if not views or views[0].rows.empty:
        return _Computed(features=0, records=0)
    fields = sum(view.rows.shape[1] for view in views)
    rows = len(views[0].rows)
    missing = (
        views
        if request.force_recompute or not request.skip_existing_features
        else [view for view in views if not repository.has_rows(view)]
    )
    for view in missing:
        repository.write_rows(view)
    written = time.perf_counter()
    service = repository.apply(views, request.feature_config_version_info)
    _log.info(
        "stored request_id=%s service=%s views=%d written=%d fields=%d rows=%d write_ms=%.0f apply_ms=%.0f",
        request.request_id,
        service,
        len(views),
        len(missing),
        fields,
        rows,
        (written - started) * 1000,
        (time.perf_counter() - written) * 1000,
    )
    return _Computed(fields, rows, already_there=not missing)


def _of_range(view: ComputedView, request: PreprocessingRequest) -> ComputedView:
    """Cut to the bars that open in [start, end), widened to whole days: a day's file is replaced as a whole."""
    first = pd.Timestamp(request.start_time).floor("D")
    past = pd.Timestamp(request.end_time).ceil("D")
    inside = (view.rows.index >= first) & (view.rows.index < past)
    return ComputedView(view.name, view.role, view.symbol, view.timeframe, view.rows[inside])


def _value(fields: dict[str, JsonValue]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _local_now() -> str:
    return datetime.now().isoformat()  # noqa: DTZ005 - the real one's timestamp never has a zone


def _names(timeframes: list[Timeframe]) -> list[JsonValue]:
    return [timeframe.value for timeframe in timeframes]


def _headers(request: PreprocessingRequest, event_type: str) -> dict[str, str]:
    return {
        "event_type": event_type,
        "symbol": request.symbol,
        "processing_context": request.processing_context,
        "request_id": request.request_id,
    }


def _completion(request: PreprocessingRequest, computed: dict[Timeframe, _Computed]) -> Outgoing:
    details: dict[str, JsonValue] = {}
    total = 0
    if computed and all(done.already_there for done in computed.values()):
        details = {"reason": "all_features_exist", "skipped": True}
    else:
        for timeframe, done in computed.items():
            details[f"features_{timeframe}"] = done.features
            details[f"records_{timeframe}"] = done.records
            total += done.features
    return Outgoing(
        topic=COMPLETED_TOPIC_BY_CONTEXT.get(request.processing_context, COMPLETED_TOPIC),
        key=request.request_id,
        headers=_headers(request, "preprocessing_completed"),
        value=_value(
            {
                "request_id": request.request_id,
                "symbol": request.symbol,
                "processing_context": request.processing_context,
                "total_features_computed": total,
                "timeframes_processed": _names(list(computed)),
                "feature_definitions_count": len(request.enabled_definitions),
                "target_timeframes": _names(request.target_timeframes),
                "base_timeframe": request.base_timeframe.value,
                "start_time": request.start_time.isoformat(),
                "end_time": request.end_time.isoformat(),
                "timestamp": _local_now(),
                "success_details": details,
            }
        ),
    )


def _preprocessing_error(request: PreprocessingRequest, error: Exception) -> Outgoing:
    failed_step = "processing_pipeline"
    return Outgoing(
        topic=ERROR_TOPIC,
        key=request.request_id,
        headers=_headers(request, "preprocessing_error") | {"failed_step": failed_step},
        value=_value(
            {
                "request_id": request.request_id,
                "symbol": request.symbol,
                "processing_context": request.processing_context,
                "error_message": str(error),
                "error_details": {"error_type": type(error).__name__},
                "failed_step": failed_step,
                "target_timeframes": _names(request.target_timeframes),
                "base_timeframe": request.base_timeframe.value,
                "start_time": request.start_time.isoformat(),
                "end_time": request.end_time.isoformat(),
                "timestamp": _local_now(),
            }
        ),
    )


def _feature_validation_error(request: PreprocessingRequest, invalid: dict[str, str]) -> Outgoing:
    return Outgoing(
        topic=ERROR_TOPIC,
        key=request.request_id,
        headers=_headers(request, "feature_validation_error"),
        value=_value(
            {
                "request_id": request.request_id,
                "symbol": request.symbol,
                "processing_context": request.processing_context,
                "invalid_features": list(invalid),
                "validation_errors": dict(invalid),
                "total_features_requested": len(request.enabled_definitions),
                "timestamp": _local_now(),
            }
        ),
    )
