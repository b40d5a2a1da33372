import numpy as np
import pandas as pd
import pytest

from training_fsm.local.standin.indicators import INDICATORS, ONLY, Bars, FeatureRole
from training_fsm.local.standin.prices import load_prices


def _bars(count: int = 400) -> Bars:
    prices = load_prices("EURUSD").head(count)
    return Bars(*(prices[name].to_numpy() for name in ("open", "high", "low", "close")))


def _first(bars: Bars, count: int) -> Bars:
    return Bars(bars.open[:count], bars.high[:count], bars.low[:count], bars.close[:count])


@pytest.mark.parametrize(
    ("feature", "leading"),
    [
        ("close_price", 0),
        ("open_price", 0),
        ("rsi", 14),
        ("atr", 14),
        ("ema", 19),
        ("sma", 19),
        ("roc", 10),
        ("momentum", 10),
        ("returns", 1),
        ("log_return", 1),
        ("volatility", 20),
        ("macd", 33),
        ("bollinger_bands", 19),
        ("adx", 27),
        ("cci", 19),
    ],
)
def test_nan_rows_stay_at_the_beginning(feature: str, leading: int) -> None:
    """Each indicator starts with as many NaN rows as it lacks history, and has none after them."""
    indicator = INDICATORS[feature]
    for column in indicator.compute(_bars(), indicator.parameters({})).values():
        assert len(column) == 400
        assert np.isnan(column[:leading]).all()
        assert np.isfinite(column[leading:]).all()


@pytest.mark.parametrize("feature", sorted(INDICATORS))
def test_no_indicator_looks_ahead(feature: str) -> None:
    """What an indicator says of the first bars does not change when later bars are there."""
    indicator = INDICATORS[feature]
    parameters = indicator.parameters({})
    early = indicator.compute(_first(_bars(), 150), parameters)
    late = indicator.compute(_bars(), parameters)
    for name, column in early.items():
        np.testing.assert_allclose(column, late[name][:150], rtol=1e-12, equal_nan=True)


def test_values_agree_with_their_definitions() -> None:
    """Moving average, returns and their deviation equal pandas' own."""
    bars = _bars()
    close = pd.Series(bars.close)
    expected = {
        "sma": close.rolling(20).mean(),
        "returns": close.pct_change(),
        "log_return": np.log(close).diff(),
        "volatility": np.log(close).diff().rolling(20).std(ddof=0),
        "momentum": close.diff(10),
        "roc": close.pct_change(10) * 100,
        "close_price": close,
    }
    for feature, values in expected.items():
        (column,) = INDICATORS[feature].compute(bars, INDICATORS[feature].parameters({})).values()
        np.testing.assert_allclose(column, values.to_numpy(), rtol=1e-6, atol=1e-9, equal_nan=True)


def test_rsi_of_steady_rise_is_a_hundred() -> None:
    """A price that only rises has an RSI of 100."""
    rising = np.arange(1.0, 40.0)
    column = INDICATORS["rsi"].compute(Bars(rising, rising, rising, rising), {"length": 14})[ONLY]
    assert set(column[14:]) == {100.0}


def test_too_few_bars_give_only_nan() -> None:
    """With fewer bars than it looks back, an indicator says nothing rather than failing."""
    for feature in ("rsi", "log_return", "macd", "volatility"):
        indicator = INDICATORS[feature]
        for column in indicator.compute(_first(_bars(), 1), indicator.parameters({})).values():
            assert len(column) == 1
            assert np.isnan(column).all()


@pytest.mark.parametrize(
    ("feature", "parameter_set", "words"),
    [
        ("rsi", {"lenght": 14}, "unknown parameter 'lenght', expected length"),
        ("rsi", {"length": "14"}, "'length' must be a number above 0, got '14'"),
        ("rsi", {"length": True}, "'length' must be a number above 0, got True"),
        ("rsi", {"length": 0}, "'length' must be a number above 0, got 0"),
        ("rsi", {"length": float("inf")}, "'length' must be a number above 0, got inf"),
        ("rsi", {"length": 1.5}, "'length' must be a whole number, got 1.5"),
        ("rsi", {"length": 1}, "cannot be computed"),
        ("close_price", {"length": 1}, "unknown parameter 'length', expected none"),
    ],
)
def test_unusable_parameters_are_named(feature: str, parameter_set: dict[str, int | float | str], words: str) -> None:
    """A parameter that is unknown or unusable is refused by its name."""
    with pytest.raises(ValueError, match=words):
        INDICATORS[feature].parameters(parameter_set)


def test_roles_tell_prices_from_indicators() -> None:
    """Prices and ATR serve reward and backtest, everything else is for the agent to see."""
    rewards = {name for name, one in INDICATORS.items() if one.role is FeatureRole.REWARD_ENGINEERING}
    assert rewards == {"open_price", "high_price", "low_price", "close_price", "atr"}
