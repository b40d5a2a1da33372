from datetime import timedelta

import pandas as pd
import pytest

from training_fsm.core.data_checks import gaps
from training_fsm.core.feature_rows import ViewRows, check_coverage, join_views, lacking_ranges, united, within
from training_fsm.core.frozen_data import periods_per_year
from training_fsm.domain.errors import FeaturesMissing
from training_fsm.domain.timeframe import Timeframe, TimeRange
from training_fsm.local.standin import wire
from training_fsm.local.standin.prices import load_prices, resample

MARKETS = [("EURUSD", "4h"), ("SPX500", "1d"), ("SPX500", "1w"), ("SPX500", "1M")]


def openings(symbol: str, timeframe: str) -> pd.Series:
    """Openings of a real market's bars."""
    bars = load_prices(symbol)
    if timeframe != "1d":
        bars = resample(bars, wire.Timeframe(timeframe))
    return pd.Series(bars.index, name="event_timestamp")


def check(times: pd.Series, start: pd.Timestamp, end: pd.Timestamp, timeframe: str) -> None:
    """Ask for [start, end) of a market and check what of it is there."""
    frame = times[(times >= start) & (times < end)].to_frame().assign(close=1.0)
    asked = TimeRange(start=start.to_pydatetime(), end=end.to_pydatetime())
    check_coverage([ViewRows("close", frame)], asked, Timeframe(timeframe), "service")


@pytest.mark.parametrize(("symbol", "timeframe"), MARKETS)
def test_no_day_of_a_real_market_is_taken_for_a_lack(symbol: str, timeframe: str) -> None:
    """A range may begin and end on any day: weekends, Christmas, Easter and September 2001 are no lack."""
    times = openings(symbol, timeframe)
    first, last = times.iloc[0].floor("D"), times.iloc[-1].ceil("D") + pd.Timedelta(days=1)
    ends = pd.date_range(first, last, freq="D" if symbol == "EURUSD" else "11D").union(
        pd.to_datetime(["2001-09-11", "2001-09-12", "2016-12-24", "2018-03-30"], utc=True)
    )
    half = first + (last - first) / 2
    for day in ends[(ends >= first) & (ends <= last)]:
        check(times, *((day, last) if day < half else (first, day)), timeframe)


@pytest.mark.parametrize(
    ("symbol", "timeframe", "days"), [("EURUSD", "4h", 8), ("SPX500", "1d", 9), ("SPX500", "1w", 21)]
)
def test_a_week_that_lacks_at_an_end_is_noticed(symbol: str, timeframe: str, days: int) -> None:
    """More than the longest closure at either end is a lack, and the failure says which range."""
    times = openings(symbol, timeframe)
    first, last = times.iloc[0].floor("D"), times.iloc[-1].ceil("D")
    lacking = pd.Timedelta(days=days)
    with pytest.raises(FeaturesMissing) as raised:
        check(times, first - lacking, last, timeframe)
    failure_range = raised.value.failure.range
    assert failure_range == f"{(first - lacking).isoformat()} to {times.iloc[0].isoformat()}"
    with pytest.raises(FeaturesMissing, match="expected from"):
        check(times, first, last + pd.Timedelta(minutes=Timeframe(timeframe).minutes) + lacking, timeframe)


def span(start: str, end: str) -> TimeRange:
    """A range of UTC times."""
    return TimeRange.model_validate({"start": start, "end": end})


def test_lacking_ranges_are_at_both_ends_or_all() -> None:
    """What lacks is said as ranges that ingest can be asked for; the bars that are there are in neither."""
    times = openings("EURUSD", "4h")
    asked = span("2016-10-01", "2018-03-01")
    view = ViewRows("close", times.to_frame())
    before, after = span("2016-10-01", "2017-01-01T20:00"), span("2017-12-30", "2018-03-01")
    assert lacking_ranges([view], asked, Timeframe.H4) == (before, after)
    late = ViewRows("rsi", times[times >= "2017-06-01"].to_frame())
    assert lacking_ranges([view, late], asked, Timeframe.H4) == (before, after)
    assert lacking_ranges(within([view], span("2018-01-01", "2018-02-01")), asked, Timeframe.H4) == (asked,)


def test_united_ranges_do_not_overlap() -> None:
    """Ranges that touch or overlap become one; one inside of another does not shorten it."""
    parts = [span("2017-05-01", "2017-06-01"), span("2017-01-01", "2017-03-01"), span("2017-01-05", "2017-02-01")]
    assert united([*parts, span("2017-03-01", "2017-04-01")]) == (
        span("2017-01-01", "2017-04-01"),
        span("2017-05-01", "2017-06-01"),
    )
    assert united([]) == ()


def test_bars_outside_of_what_is_demanded_may_lack_in_a_view() -> None:
    """Only demanded bars must be in all views; 1 % is of all bars, so that a short part may lack one."""
    times = openings("EURUSD", "4h")
    close = ViewRows("close", times.to_frame().assign(close=1.0))
    rsi = ViewRows("rsi", times[times >= "2017-06-01"].to_frame().assign(rsi=1.0))
    demanded = [span("2017-06-01", "2018-01-01")]
    joined = join_views([close, rsi], "service", demanded)
    assert joined["event_timestamp"].tolist() == rsi.frame["event_timestamp"].tolist()
    assert join_views([close, rsi], "service", []).equals(joined)
    with pytest.raises(FeaturesMissing, match=r"view rsi lacks most, 19$") as raised:
        join_views([close, rsi], "service", [span("2017-05-28", "2017-06-02"), *demanded])
    assert raised.value.failure.range == "2017-05-28T20:00:00+00:00 to 2017-05-31T20:00:00+00:00"


@pytest.mark.parametrize(
    ("symbol", "timeframe", "start", "end", "expected"),
    [
        ("EURUSD", "4h", "2017-01-01", "2018-01-01", 1610),
        ("SPX500", "1d", "1999-01-01", "2019-01-01", 252),
        ("SPX500", "1w", "1999-01-01", "2019-01-01", 52),
        ("SPX500", "1M", "1999-01-01", "2019-01-01", 12),
    ],
)
def test_periods_per_year_of_real_markets(symbol: str, timeframe: str, start: str, end: str, expected: int) -> None:
    """Bars over calendar time give the year that people annualise with."""
    asked = TimeRange.model_validate({"start": start, "end": end})
    assert abs(periods_per_year(len(openings(symbol, timeframe)), asked) - expected) <= 1


def test_gaps_of_real_markets() -> None:
    """Months of 31 days and weeks with a holiday are no gaps; weekends of a daily market are."""
    assert gaps(openings("SPX500", "1M"), Timeframe.MONTH1, None).count == 0
    assert gaps(openings("SPX500", "1w"), Timeframe.W1, None).count == 0
    daily = gaps(openings("SPX500", "1d"), Timeframe.D1, None)
    assert (daily.count, daily.longest_bars) == (1090, 7)
    assert daily.longest_after is not None
    assert daily.longest_after.date().isoformat() == "2001-09-10"


def test_two_bars_have_no_gap_and_one_has_no_step() -> None:
    """The shortest frames are not a special case for whoever counts."""
    times = pd.Series(pd.date_range("2017-01-02", periods=2, freq=timedelta(hours=4), tz="UTC"))
    assert gaps(times, Timeframe.H4, 1).count == 0
    assert gaps(times[:1], Timeframe.H4, 1).longest_after is None
