"""Statistics of an equity curve and of its trades, and how sure they are.

Every number is defined for every curve: nothing over nothing is 0, something over nothing infinite, and an equity that
is not a positive number any more is a total loss from there on.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training_fsm.domain.facts import MetricBand
from training_fsm.domain.metrics import HEADLINE_METRICS, TradeOutcome
from training_fsm.domain.validations import losing_streaks

Array = NDArray[np.float64]

_ELEMENTS_AT_ONCE = 2_000_000
_LEAST_EQUITY, _MOST_EQUITY = 1e-60, 1e60
"""Within these, squares of returns are still numbers."""
_LARGEST_LOG = 700.0
"""exp of more is no float64; a few bars can annualise to that."""


def simple_returns(equity: ArrayLike) -> Array:
    """E[t] / E[t-1] - 1 of each bar after the first; -1 where the equity is lost, 0 after that."""
    curve = _sound(equity)
    if curve.size < 2:
        return np.zeros(0)
    before = curve[:-1]
    changes = np.zeros(before.size)
    np.divide(curve[1:] - before, before, out=changes, where=before > 0)
    return changes


def curve_statistics(equity: ArrayLike, periods_per_year: float) -> dict[str, float]:
    """The metrics of `CURVE_METRICS` for an equity curve, one value a bar, the first before anything happened.

    With r the simple returns of n bars and k = periods_per_year, the risk-free rate 0:

    - annual return: (E[n] / E[0])^(k/n) - 1, compound.
    - annual volatility: s sqrt(k), with s the standard deviation of r (n - 1 in the denominator).
    - sharpe: mean(r) / s sqrt(k); Sharpe, The Sharpe Ratio, J. of Portfolio Management 21(1), 1994.
    - sortino: mean(r) / d sqrt(k), d = sqrt(sum(min(r, 0)^2) / n); Sortino and Price, J. of Investing 3(3), 1994.
    - max drawdown: the largest 1 - E[t] / max(E[..t]), as a positive fraction.
    - calmar: annual return / max drawdown; Young, Calmar Ratio: A Smoother Tool, Futures 20(1), 1991.
    """
    returns = simple_returns(equity)
    growth = _log_growth(returns)
    total = float(np.expm1(min(growth.sum(), _LARGEST_LOG))) if returns.size else 0.0
    annual = float(np.expm1(min(growth.mean() * periods_per_year, _LARGEST_LOG))) if returns.size else 0.0
    drawdown = float(_max_drawdown(growth[None, :])[0])
    downside = float(np.sqrt(np.mean(np.minimum(returns, 0.0) ** 2))) if returns.size else 0.0
    scale = float(np.sqrt(periods_per_year))
    return {
        "total_return_fraction": total,
        "annual_return_fraction": annual,
        "annual_volatility_fraction": float(returns.std(ddof=1)) * scale if returns.size > 1 else 0.0,
        "sharpe": float(_sharpe(returns[None, :], periods_per_year)[0]),
        "sortino": _ratio(float(returns.mean()) * scale if returns.size else 0.0, downside),
        "calmar": _ratio(annual, drawdown),
        "max_drawdown_fraction": drawdown,
    }


def trade_statistics(trades: Sequence[TradeOutcome]) -> dict[str, float]:
    """Count, win rate, profit factor and longest losing streak of the closed trades.

    Profit factor: sum of profits / sum of losses; Pardo, The Evaluation and Optimization of Trading Strategies, 2008.
    """
    profits = np.array([trade.profit for trade in trades if trade.closed], dtype=np.float64)
    return {
        "trades": float(profits.size),
        "win_rate_fraction": float((profits > 0).mean()) if profits.size else 0.0,
        "profit_factor": _ratio(float(profits[profits > 0].sum()), float(-profits[profits < 0].sum())),
        "max_consecutive_losses": float(max((len(streak) for streak in losing_streaks(trades)), default=0)),
    }


def bootstrap_bands(
    equity: ArrayLike,
    periods_per_year: float,
    seed: int,
    *,
    confidence: float = 0.95,
    paths: int = 1000,
    block_bars: int | None = None,
) -> tuple[MetricBand, ...]:
    """Bands of the headline metrics: percentiles over paths of the circular block bootstrap.

    Politis and Romano, A Circular Block-Resampling Procedure for Stationary Data, 1992. Blocks keep what follows what
    in the returns; they are max(10, n^(1/3)) bars long by default (the order of Hall, Horowitz and Jing, Biometrika
    82(3), 1995, and not below the family's 10). The same seed gives the same bands.
    """
    returns = simple_returns(equity)
    bars = returns.size
    if bars == 0:
        return tuple(MetricBand(metric=name, low=0.0, high=0.0, confidence=confidence) for name in HEADLINE_METRICS)
    block = min(bars, block_bars or max(10, round(bars ** (1 / 3))))
    blocks = -(-bars // block)
    generator = np.random.default_rng(seed)
    offsets = np.arange(block)
    at_once = max(1, _ELEMENTS_AT_ONCE // (blocks * block))
    samples: dict[str, list[Array]] = {name: [] for name in HEADLINE_METRICS}
    for done in range(0, paths, at_once):
        starts = generator.integers(0, bars, size=(min(at_once, paths - done), blocks, 1))
        rows = ((starts + offsets) % bars).reshape(starts.shape[0], -1)[:, :bars]
        drawn = returns[rows]
        growth = _log_growth(drawn)
        samples["total_return_fraction"].append(np.expm1(np.minimum(growth.sum(axis=1), _LARGEST_LOG)))
        samples["sharpe"].append(_sharpe(drawn, periods_per_year))
        samples["max_drawdown_fraction"].append(_max_drawdown(growth))
    tail = (1 - confidence) / 2
    return tuple(_band(name, np.sort(np.concatenate(values)), tail, confidence) for name, values in samples.items())


def _band(name: str, ordered: Array, tail: float, confidence: float) -> MetricBand:
    """Order statistics, not interpolated: a ratio may be infinite, and between infinities there is nothing."""
    last = ordered.size - 1
    low, high = ordered[int(tail * last)], ordered[last - int(tail * last)]
    return MetricBand(metric=name, low=float(low), high=float(high), confidence=confidence)


def _sound(equity: ArrayLike) -> Array:
    """The curve in float64; 0 from the first value on that is no amount of money."""
    curve = np.array(equity, dtype=np.float64).reshape(-1)
    lost = np.flatnonzero(~((curve >= _LEAST_EQUITY) & (curve <= _MOST_EQUITY)))
    if lost.size:
        curve[lost[0] :] = 0.0
    return curve


def _log_growth(returns: Array) -> Array:
    """log(1 + r); a total loss as -700, which is 1e-304 of what there was."""
    lost = returns <= -1
    return np.where(lost, -_LARGEST_LOG, np.log1p(np.where(lost, 0.0, returns)))


def _sharpe(returns: Array, periods_per_year: float) -> Array:
    """Of each row."""
    if returns.shape[1] < 2:
        return np.zeros(returns.shape[0])
    mean, deviation = returns.mean(axis=1), returns.std(axis=1, ddof=1)
    # Equal returns differ by rounding; a ratio over that would be noise.
    moves = deviation > 1e-12 * np.abs(mean)
    ratios: Array = np.where(mean == 0.0, 0.0, np.copysign(np.inf, mean))
    np.divide(mean * np.sqrt(periods_per_year), deviation, out=ratios, where=moves)
    return ratios


def _max_drawdown(growth: Array) -> Array:
    """Of each row of log returns; the start counts as a peak."""
    level = np.concatenate([np.zeros((growth.shape[0], 1)), np.cumsum(growth, axis=1)], axis=1)
    deepest: Array = (level - np.maximum.accumulate(level, axis=1)).min(axis=1)
    return np.abs(np.expm1(deepest))


def _ratio(upper: float, lower: float) -> float:
    if lower > 0:
        return upper / lower
    return float(np.copysign(np.inf, upper)) if upper else 0.0
