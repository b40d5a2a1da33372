"""Names of the test metrics that a gate may bound, and the numbers of a backtest that a verdict needs."""

from dataclasses import dataclass

from training_fsm.domain.facts import MetricBand

CURVE_METRICS = (
    "total_return_fraction",
    "annual_return_fraction",
    "annual_volatility_fraction",
    "sharpe",
    "sortino",
    "calmar",
    "max_drawdown_fraction",
)
"""Metrics of an equity curve; with the prefix `buy_and_hold_` those of holding one long position."""

TRADE_METRICS = (
    "trades",
    "win_rate_fraction",
    "profit_factor",
    "max_consecutive_losses",
    "turnover",
    "costs",
    "exposure_fraction",
)
"""Metrics of what was traded. Turnover is traded notional over mean equity; costs are in account currency."""

KNOWN_METRICS = (
    *CURVE_METRICS,
    *TRADE_METRICS,
    *(f"buy_and_hold_{name}" for name in CURVE_METRICS),
    "excess_total_return_fraction",
)
"""Every metric of a backtest, in the order of its report."""

HEADLINE_METRICS = ("total_return_fraction", "sharpe", "max_drawdown_fraction")
"""Metrics that come with a bootstrap band."""


def known_metric(name: str) -> str:
    """The name itself. Raises ValueError with the known ones where there is no such metric."""
    if name not in KNOWN_METRICS:
        raise ValueError(f"metric: expected one of {', '.join(KNOWN_METRICS)}; got {name!r}")
    return name


LOWER_IS_BETTER = frozenset(
    {"annual_volatility_fraction", "max_drawdown_fraction", "max_consecutive_losses", "turnover", "costs"}
)
"""Metrics of loss and cost: a challenger must be below the champion's."""


@dataclass(frozen=True, slots=True)
class TradeOutcome:
    """What one trade brought, in account currency, its costs paid."""

    profit: float
    equity_before: float
    equity_after: float
    closed: bool = True
    """False for a trade that the end of the test part found open."""


@dataclass(frozen=True, slots=True)
class BacktestNumbers:
    """A backtest as its judges see it."""

    metrics: dict[str, float]
    bands: tuple[MetricBand, ...]
    returns: tuple[float, ...]
    """Simple return of each bar after the first."""
    trades: tuple[TradeOutcome, ...]
    """In the order of their ends."""
