import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_fsm.core.statistics import bootstrap_bands, curve_statistics, simple_returns, trade_statistics
from training_fsm.domain.metrics import CURVE_METRICS, HEADLINE_METRICS, TradeOutcome


def _outcomes(*profits: float) -> list[TradeOutcome]:
    return [TradeOutcome(profit, 100.0, 100.0 + profit) for profit in profits]


def test_a_curve_worked_out_by_hand() -> None:
    """Every statistic of 100, 110, 99, 108.9 at four bars a year is what its formula gives by hand."""
    statistics = curve_statistics([100.0, 110.0, 99.0, 108.9], periods_per_year=4)
    deviation = math.sqrt(((0.1 - 1 / 30) ** 2 * 2 + (-0.1 - 1 / 30) ** 2) / 2)
    assert statistics == pytest.approx(
        {
            "total_return_fraction": 0.089,
            "annual_return_fraction": 1.089 ** (4 / 3) - 1,
            "annual_volatility_fraction": deviation * 2,
            "sharpe": (1 / 30) / deviation * 2,
            "sortino": (1 / 30) / math.sqrt(0.01 / 3) * 2,
            "calmar": (1.089 ** (4 / 3) - 1) / 0.1,
            "max_drawdown_fraction": 0.1,
        }
    )


@pytest.mark.parametrize("equity", [[], [100.0], [100.0, 100.0, 100.0]])
def test_a_curve_on_which_nothing_happens_is_all_zeros(equity: list[float]) -> None:
    """No bar, one bar and constant equity have defined statistics, each of them 0."""
    assert curve_statistics(equity, 252) == dict.fromkeys(CURVE_METRICS, 0.0)
    assert [(band.low, band.high) for band in bootstrap_bands(equity, 252, 0)] == [(0.0, 0.0)] * 3


def test_a_gain_without_any_risk_is_infinitely_good() -> None:
    """Equal returns have no deviation that is more than rounding, and no drawdown to divide by."""
    statistics = curve_statistics(100 * 1.01 ** np.arange(50), 252)
    assert statistics["sharpe"] == statistics["sortino"] == statistics["calmar"] == math.inf


@pytest.mark.parametrize("ruin", [0.0, -5.0, math.nan, math.inf])
def test_an_equity_that_is_no_positive_number_is_a_total_loss(ruin: float) -> None:
    """Whatever comes after the loss is not believed."""
    statistics = curve_statistics([100.0, 120.0, ruin, 500.0], 252)
    assert statistics["total_return_fraction"] == statistics["annual_return_fraction"] == -1.0
    assert statistics["max_drawdown_fraction"] == 1.0
    assert simple_returns([100.0, 120.0, ruin, 500.0]).tolist() == pytest.approx([0.2, -1.0, 0.0])


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30), st.floats(0.01, 1e6))
def test_every_curve_has_defined_statistics(equity: list[float], periods_per_year: float) -> None:
    """No list of floats makes a statistic fail, warn, or come out as NaN."""
    statistics = curve_statistics(equity, periods_per_year)
    bands = bootstrap_bands(equity, periods_per_year, 0, paths=20)
    assert not any(math.isnan(value) for value in statistics.values())
    assert all(band.low <= band.high for band in bands)
    assert 0 <= statistics["max_drawdown_fraction"] <= 1


def test_trades_worked_out_by_hand() -> None:
    """Win rate, profit factor and losing streak count closed trades only."""
    trades = [*_outcomes(10, -5, -5, 0, -2, 12), TradeOutcome(-50.0, 100.0, 50.0, closed=False)]
    assert trade_statistics(trades) == pytest.approx(
        {"trades": 6, "win_rate_fraction": 1 / 3, "profit_factor": 22 / 12, "max_consecutive_losses": 2}
    )


def test_no_trades_and_no_losses_are_defined() -> None:
    """Without trades everything is 0; without a loss the profit factor is infinite."""
    assert set(trade_statistics([]).values()) == {0.0}
    assert trade_statistics(_outcomes(1.0))["profit_factor"] == math.inf


def test_bands_follow_the_seed_and_hold_the_estimate() -> None:
    """The same seed gives the same bands, another one others, and a metric lies within its own band."""
    equity = 100 * np.exp(np.cumsum(np.random.default_rng(5).normal(0.0005, 0.01, 400)))
    bands = bootstrap_bands(equity, 252, 7)
    assert bands == bootstrap_bands(equity, 252, 7)
    assert bands != bootstrap_bands(equity, 252, 8)
    assert tuple(band.metric for band in bands) == HEADLINE_METRICS
    statistics = curve_statistics(equity, 252)
    assert all(band.low < statistics[band.metric] < band.high for band in bands)


def test_bands_cover_a_known_sharpe_ratio() -> None:
    """Of 60 series with a true Sharpe ratio of 1, the 95 % band holds it for nearly all, and is not wide."""
    generator = np.random.default_rng(3)
    returns = generator.normal(0.01 / math.sqrt(252), 0.01, (60, 500))
    curves = 100 * np.cumprod(np.hstack([np.ones((60, 1)), 1 + returns]), axis=1)
    bands = [bootstrap_bands(curve, 252, 1, paths=300)[1] for curve in curves]
    held = sum(band.low <= 1.0 <= band.high for band in bands)
    assert held >= 50
    assert all(1 < band.high - band.low < 6 for band in bands)


def test_blocks_keep_what_follows_what() -> None:
    """A curve that swings slowly falls deeper in blocks than when its bars are drawn one by one."""
    equity = 100 * np.exp(np.cumsum(0.01 * np.sin(np.arange(600) / 10)))
    single, blocks = (bootstrap_bands(equity, 252, 0, block_bars=bars)[2] for bars in (1, 25))
    assert blocks.high > 1.5 * single.high
