import pandas as pd
import pytest

from training_fsm.local.standin.prices import SYMBOLS, load_prices, resample
from training_fsm.local.standin.wire import Timeframe


@pytest.mark.parametrize(("symbol", "rows"), [("EURUSD", 6225), ("SPX500", 5031)])
def test_shipped_bars_are_whole(symbol: str, rows: int) -> None:
    """Each symbol's bars are complete, sorted, unique, in UTC, and no price leaves its bar's range."""
    bars = load_prices(symbol)
    assert list(bars.columns) == ["open", "high", "low", "close", "volume"]
    assert len(bars) == rows
    assert isinstance(bars.index, pd.DatetimeIndex)
    assert str(bars.index.tz) == "UTC"
    assert bars.index.is_monotonic_increasing
    assert bars.index.is_unique
    assert not bars.isna().to_numpy().any()
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()


def test_load_prices_gives_a_copy() -> None:
    """A caller that changes its bars changes nobody else's."""
    mine = load_prices("EURUSD")
    mine.iloc[0, 0] = 0.0
    assert load_prices("EURUSD").iloc[0, 0] == 1.05236


def test_four_hours_are_labelled_by_their_opening() -> None:
    """A bar of four hours opens with the first hour, closes with the last, and holds only what opened within it."""
    hours = load_prices("EURUSD").loc["2017-02-01 08:00":"2017-02-01 11:00"]
    bar = resample(load_prices("EURUSD"), Timeframe.HOUR_4).loc["2017-02-01 08:00+00:00"]
    assert len(hours) == 4
    assert bar["open"] == hours["open"].iloc[0]
    assert bar["close"] == hours["close"].iloc[-1]
    assert bar["high"] == hours["high"].max()
    assert bar["low"] == hours["low"].min()
    assert bar["volume"] == pytest.approx(hours["volume"].sum())


@pytest.mark.parametrize(
    ("symbol", "timeframe", "rows"),
    [
        ("EURUSD", "4h", 1609),
        ("EURUSD", "1d", 312),
        ("EURUSD", "1w", 53),
        ("SPX500", "1w", 1044),
        ("SPX500", "1M", 240),
    ],
)
def test_resampling_neither_loses_nor_invents(symbol: str, timeframe: str, rows: int) -> None:
    """Resampled bars keep first open, last close, extremes and volume, and closed markets give no bar."""
    bars = load_prices(symbol)
    longer = resample(bars, Timeframe(timeframe))
    assert len(longer) == rows
    assert not longer.isna().to_numpy().any()
    assert longer["open"].iloc[0] == bars["open"].iloc[0]
    assert longer["close"].iloc[-1] == bars["close"].iloc[-1]
    assert longer["high"].max() == bars["high"].max()
    assert longer["low"].min() == bars["low"].min()
    assert longer["volume"].sum() == pytest.approx(bars["volume"].sum())


def test_weeks_start_on_monday_and_months_on_their_first() -> None:
    """A week is labelled by its Monday even when that was a holiday, a month by its first day."""
    bars = load_prices("SPX500")
    weeks = pd.DatetimeIndex(resample(bars, Timeframe.WEEK_1).index)
    months = pd.DatetimeIndex(resample(bars, Timeframe.MONTH_1).index)
    assert set(weeks.dayofweek) == {0}
    assert set(months.day) == {1}


def test_the_last_bar_may_be_incomplete() -> None:
    """The week that the data end in is there with the one day that it has."""
    last = resample(load_prices("SPX500"), Timeframe.WEEK_1).iloc[-1]
    assert last["close"] == load_prices("SPX500")["close"].iloc[-1]
    assert last["open"] == load_prices("SPX500")["open"].iloc[-1]


def test_base_timeframes_are_those_of_the_data() -> None:
    """The base timeframe that a symbol declares is the distance that most of its bars have."""
    steps = {symbol: load_prices(symbol).index.to_series().diff().mode().iloc[0] for symbol in SYMBOLS}
    assert steps == {"EURUSD": pd.Timedelta(hours=1), "SPX500": pd.Timedelta(days=1)}
    assert {s: series.base_timeframe.value for s, series in SYMBOLS.items()} == {"EURUSD": "1h", "SPX500": "1d"}
