"""The features that the stand-in of preprocess can compute, by TA-Lib (https://ta-lib.org).

Every indicator maps bars to one column, or to several named sub features. The leading NaN rows, for which an indicator
has too little history, stay in.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import talib
from pydantic import JsonValue

Column = npt.NDArray[np.float64]
Parameters = Mapping[str, float]

ONLY = ""
"""The sub feature's name where there is one only, and none is written into the field's name."""


class FeatureRole(StrEnum):
    """What a feature is for: the agent's eyes, or reward and backtest."""

    OBSERVATION_SPACE = "observation_space"
    REWARD_ENGINEERING = "reward_engineering"


@dataclass(frozen=True)
class Bars:
    """Open, high, low, close of consecutive bars, one array each."""

    open: Column
    high: Column
    low: Column
    close: Column


_PROBE = Bars(*[np.ones(2)] * 4)


@dataclass(frozen=True)
class Indicator:
    """How one feature is computed.

    `defaults` has its parameters (bars, or deviations) in the order of the view's name.
    """

    compute: Callable[[Bars, Parameters], Mapping[str, Column]]
    defaults: Mapping[str, float]
    role: FeatureRole = FeatureRole.OBSERVATION_SPACE

    def parameters(self, parameter_set: Mapping[str, JsonValue]) -> dict[str, float]:
        """Read a request's parameter set; raises ValueError that names an unknown or unusable parameter."""
        unknown = sorted(parameter_set.keys() - self.defaults.keys() - {"type", "enabled"})
        if unknown:
            raise ValueError(f"unknown parameter {unknown[0]!r}, expected {', '.join(self.defaults) or 'none'}")
        read = dict(self.defaults)
        for name, default in self.defaults.items():
            value = parameter_set.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"parameter {name!r} must be a number above 0, got {value!r}")
            if isinstance(default, int) and value != int(value):
                raise ValueError(f"parameter {name!r} must be a whole number, got {value!r}")
            read[name] = type(default)(value)
        try:
            self.compute(_PROBE, read)
        except Exception as error:  # TA-Lib knows its own bounds, and raises nothing more special
            raise ValueError(f"parameters {read} cannot be computed: {error}") from error
        return read


def _log_return(bars: Bars, length: int) -> Column:
    logarithm = np.log(bars.close)
    change = np.full(logarithm.size, np.nan)
    change[length:] = logarithm[length:] - logarithm[:-length]
    return change


def _macd(bars: Bars, parameters: Parameters) -> Mapping[str, Column]:
    macd, signal, histogram = talib.MACD(
        bars.close,
        fastperiod=int(parameters["fast"]),
        slowperiod=int(parameters["slow"]),
        signalperiod=int(parameters["signal"]),
    )
    return {"macd": macd, "signal": signal, "histogram": histogram}


def _bollinger_bands(bars: Bars, parameters: Parameters) -> Mapping[str, Column]:
    upper, middle, lower = talib.BBANDS(
        bars.close,
        timeperiod=int(parameters["length"]),
        nbdevup=parameters["deviations"],
        nbdevdn=parameters["deviations"],
    )
    return {"upper": upper, "middle": middle, "lower": lower}


def _of_close(function: Callable[[Column, int], Column], length: int) -> Indicator:
    return Indicator(lambda bars, p: {ONLY: function(bars.close, int(p["length"]))}, {"length": length})


def _of_range(function: Callable[[Column, Column, Column, int], Column], length: int, role: FeatureRole) -> Indicator:
    return Indicator(
        lambda bars, p: {ONLY: function(bars.high, bars.low, bars.close, int(p["length"]))}, {"length": length}, role
    )


def _price(read: Callable[[Bars], Column]) -> Indicator:
    # A price's field carries the sub feature's name although it is the only one: `close_price_value`.
    return Indicator(lambda bars, _: {"value": read(bars)}, {}, FeatureRole.REWARD_ENGINEERING)


INDICATORS: Mapping[str, Indicator] = {
    "open_price": _price(lambda bars: bars.open),
    "high_price": _price(lambda bars: bars.high),
    "low_price": _price(lambda bars: bars.low),
    "close_price": _price(lambda bars: bars.close),
    "atr": _of_range(talib.ATR, 14, FeatureRole.REWARD_ENGINEERING),
    "rsi": _of_close(talib.RSI, 14),
    "ema": _of_close(talib.EMA, 20),
    "sma": _of_close(talib.SMA, 20),
    "roc": _of_close(talib.ROC, 10),
    "momentum": _of_close(talib.MOM, 10),
    "returns": _of_close(talib.ROCP, 1),
    "log_return": Indicator(lambda bars, p: {ONLY: _log_return(bars, int(p["length"]))}, {"length": 1}),
    "volatility": Indicator(
        lambda bars, p: {ONLY: talib.STDDEV(_log_return(bars, 1), timeperiod=int(p["length"]))}, {"length": 20}
    ),
    "adx": _of_range(talib.ADX, 14, FeatureRole.OBSERVATION_SPACE),
    "cci": _of_range(talib.CCI, 20, FeatureRole.OBSERVATION_SPACE),
    "macd": Indicator(_macd, {"fast": 12, "slow": 26, "signal": 9}),
    "bollinger_bands": Indicator(_bollinger_bands, {"length": 20, "deviations": 2.0}),
}
"""Every feature by the name that a request calls it."""
