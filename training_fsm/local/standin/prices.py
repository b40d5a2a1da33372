"""The real prices that preprocess works on, and their resampling. Sources and licences: `../prices/README.md`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from training_fsm.local.standin.wire import Timeframe

_FOLDER = Path(__file__).parent.parent / "prices"


@dataclass(frozen=True)
class Series:
    """Where a symbol's bars lie and how long each of them is."""

    file: str
    base_timeframe: Timeframe


SYMBOLS = {
    "EURUSD": Series("eurusd_1h.parquet", Timeframe.HOUR_1),
    "SPX500": Series("spx500_1d.parquet", Timeframe.DAY_1),
}

# pandas' names; weeks are labelled by their Monday, months by their first day.
_FREQUENCIES = {
    Timeframe.MINUTE_1: "1min",
    Timeframe.MINUTE_5: "5min",
    Timeframe.MINUTE_15: "15min",
    Timeframe.MINUTE_30: "30min",
    Timeframe.HOUR_1: "1h",
    Timeframe.HOUR_4: "4h",
    Timeframe.DAY_1: "1D",
    Timeframe.WEEK_1: "W-MON",
    Timeframe.MONTH_1: "MS",
}
_AGGREGATION = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}


@cache
def _read(symbol: str) -> pd.DataFrame:
    return pd.read_parquet(_FOLDER / SYMBOLS[symbol].file).set_index("timestamp")


def load_prices(symbol: str) -> pd.DataFrame:
    """Give a symbol's bars of its base timeframe.

    Returns open, high, low, close (quote currency) and volume, indexed by `timestamp`: the bar's opening, UTC, sorted,
    unique.
    Raises KeyError for a symbol that is not in `SYMBOLS`.
    """
    return _read(symbol).copy()


def resample(bars: pd.DataFrame, timeframe: Timeframe) -> pd.DataFrame:
    """Put bars together to longer ones, labelled by their opening; hours with no trade give no bar.

    The last bar may be incomplete, as in the family. Raises KeyError for `tick`, which nothing can be resampled to.
    """
    longer = bars.resample(_FREQUENCIES[timeframe], label="left", closed="left").agg(_AGGREGATION)
    return longer.dropna(subset=["open"])
