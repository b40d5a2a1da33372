from datetime import UTC, datetime, timedelta

import pytest

from training_fsm.domain.facts import Artifact, Fingerprint, Gaps, PartBounds, SplitBounds, StoredData
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.needed_ranges import needed_ranges
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange


def day(text: str) -> datetime:
    """A time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def request(start: str, end: str, symbol: str = "EURUSD", timeframe: str = "4h") -> TrainingRequest:
    """A request for a range."""
    return TrainingRequest.model_validate(
        {
            "mode": "continue",
            "model": "eurusd-ppo",
            "symbol": symbol,
            "base_timeframe": "1h",
            "timeframe": timeframe,
            "range": {"start": day(start), "end": day(end)},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "rsi"}]},
            "data": {"columns": {"close": "close"}},
        }
    )


def record(asked: TrainingRequest, first: datetime, last: datetime) -> TrainingRecord:
    """What a parent left that asked for a range and froze the bars from `first` to `last`."""
    middle = first + (last - first) / 2
    bounds = SplitBounds(
        training=PartBounds(first=0, last=1, start=first, end=first),
        validation=PartBounds(first=2, last=3, start=middle, end=middle),
        test=PartBounds(first=4, last=5, start=last, end=last),
    )
    artifact = Artifact(uri="mlflow-artifacts:/1/data", sha256="0" * 64, size_bytes=1)
    return TrainingRecord(
        run_id="parent",
        request=asked,
        feature_config=asked.features.versioned(first),
        data=StoredData(
            digest="0" * 64,
            rows=5,
            warmup_rows=14,
            gaps=Gaps(count=0, longest_bars=0, longest_after=None),
            periods_per_year=1560,
            observation_columns=("rsi",),
            bounds=bounds,
            normalisation=(),
            artifact=artifact,
        ),
        checkpoint=artifact,
        steps=1,
        fingerprint=Fingerprint.model_construct(),
        trained_until=first,
        parent=None,
        root=None,
        depth=0,
    )


@pytest.fixture
def parent() -> TrainingRecord:
    """Asked for 2017, froze from the third of January, after the warm-up, to the last Friday of the year."""
    return record(request("2017-01-01", "2018-01-01"), day("2017-01-03T04:00"), day("2017-12-29T20:00"))


@pytest.mark.parametrize(
    ("start", "end", "needed"),
    [
        ("2017-01-01", "2018-01-01", []),
        ("2017-03-01", "2017-06-01", []),
        ("2017-01-02", "2017-12-31", []),
        ("2017-01-01", "2018-03-01", [("2017-12-30", "2018-03-01")]),
        ("2017-06-01", "2018-03-01", [("2017-12-30", "2018-03-01")]),
        ("2016-11-01", "2018-01-01", [("2016-11-01", "2017-01-03T04:00")]),
        ("2016-11-01", "2017-06-01", [("2016-11-01", "2017-01-03T04:00")]),
        ("2016-11-01", "2018-03-01", [("2016-11-01", "2017-01-03T04:00"), ("2017-12-30", "2018-03-01")]),
        ("2018-02-01", "2018-03-01", [("2018-02-01", "2018-03-01")]),
        ("2016-02-01", "2016-03-01", [("2016-02-01", "2016-03-01")]),
        ("2017-12-31", "2018-03-01", [("2017-12-31", "2018-03-01")]),
    ],
)
def test_only_what_the_parent_has_not_is_needed(
    parent: TrainingRecord, start: str, end: str, needed: list[tuple[str, str]]
) -> None:
    """Beyond the parent's range from its outermost bars on; within it nothing, warm-up and closed market included."""
    assert needed_ranges(request(start, end), parent) == tuple(
        TimeRange(start=day(first), end=day(past)) for first, past in needed
    )


@pytest.mark.parametrize("other", [{"symbol": "GBPUSD"}, {"timeframe": "1d"}])
def test_another_market_or_no_record_needs_all(parent: TrainingRecord, other: dict[str, str]) -> None:
    """Bars of another symbol or timeframe are none of the run's, and a zip has none at all."""
    asked = request("2017-01-01", "2018-01-01", **other)
    assert needed_ranges(asked, parent) == (asked.range,)
    same = request("2017-01-01", "2018-01-01")
    assert needed_ranges(same, None) == (same.range,)


def test_the_bar_after_a_february_is_needed() -> None:
    """A month counts 30 days, February has 28: the bar of March is not skipped."""
    before = record(request("2010-01-01", "2017-03-01", timeframe="1M"), day("2010-02-01"), day("2017-02-01"))
    (needed,) = needed_ranges(request("2010-01-01", "2017-06-01", timeframe="1M"), before)
    assert day("2017-02-01") + timedelta(days=1) < needed.start <= day("2017-03-01")
