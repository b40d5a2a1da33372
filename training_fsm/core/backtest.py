"""One deterministic pass of a policy over bars it has never seen, through the environment it was trained in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training_fsm.core.accounting import Account, Trade
from training_fsm.core.market_data import MarketData, market_data
from training_fsm.core.statistics import bootstrap_bands, curve_statistics, simple_returns, trade_statistics
from training_fsm.core.trading_env import Observation, TradingEnv
from training_fsm.domain.facts import FrozenData
from training_fsm.domain.metrics import CURVE_METRICS, BacktestNumbers, TradeOutcome
from training_fsm.domain.request import EnvironmentConfig, TrainingRequest


class Policy(Protocol):
    """Observation in, action out, always the same."""

    def action(self, observation: Observation) -> int:
        """An action of the environment's action space."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Backtest:
    """What happened, bar by bar and trade by trade; money in account currency."""

    curve: pd.DataFrame
    """One row a bar from the first decision on: time, close, equity, position, units, return_fraction, buy_and_hold.

    The last bar closes what is open, and so does the bar of a breach, after which nothing is traded.
    """
    trades: pd.DataFrame
    """One row a trade: entry_time, exit_time, side, entry_price, exit_price, profit, costs, bars, equity_before,
    equity_after, and closed, which is false where the end of the bars closed it."""
    costs: float
    """Fees and slippage."""
    turnover: float
    """Traded notional over mean equity."""
    breach: str | None
    """The bound that ended it early."""


def run_backtest(policy: Policy, market: MarketData, config: EnvironmentConfig, seed: int) -> Backtest:
    """Play all bars once. The seed matters only where fills may slip by chance.

    Raises DataUnusable where there are fewer bars than `config.window` + 1.
    """
    env = TradingEnv(market, config, single_pass=True)
    observation, _ = env.reset(seed=seed)
    account, first = env.account, env.bar
    equity, units = np.full(len(market), config.start_balance), np.zeros(len(market))
    position = np.zeros(len(market), dtype=np.int64)
    ended = False
    while not ended:
        observation, _, terminated, truncated, _ = env.step(policy.action(observation))
        ended = terminated or truncated
        equity[env.bar], units[env.bar], position[env.bar] = account.equity, account.units, account.position
    last, closed = env.bar, len(account.trades)
    notional = _traded_notional(market, units)
    notional += abs(account.units) * market.close[last]
    account.liquidate(last)
    equity[last:] = account.equity
    curve = pd.DataFrame(
        {
            "time": pd.DatetimeIndex(market.times[first:], tz="UTC"),
            "close": market.close[first:],
            "equity": equity[first:],
            "position": position[first:],
            "units": units[first:],
            "return_fraction": np.concatenate([[0.0], simple_returns(equity[first:])]),
            "buy_and_hold": buy_and_hold(market, config, first, seed),
        }
    )
    return Backtest(
        curve=curve,
        trades=_trades(account.trades, closed, market, config.start_balance),
        costs=account.cost_paid,
        turnover=notional / float(equity[first:].mean()) if equity[first:].mean() > 0 else 0.0,
        breach=account.breach,
    )


def buy_and_hold(market: MarketData, config: EnvironmentConfig, first: int, seed: int) -> NDArray[np.float64]:
    """Equity per bar of one long position with all the equity from row `first` to the end, with the same costs."""
    unbounded = {"max_daily_drawdown": None, "max_alltime_drawdown": None, "max_time_in_trade": None}
    whole = {"max_percentage_open_position": 100.0, "min_percentage_open_position": 0.0}
    account = Account(market, config.model_copy(update=unbounded | whole))
    generator = np.random.default_rng(seed)
    equity = np.full(len(market) - first, config.start_balance)
    last = len(market) - 1
    for bar in range(first, last):
        account.advance(bar, 1, generator)
        equity[bar + 1 - first] = account.equity
    account.liquidate(last)
    equity[-1] = account.equity
    return equity


def backtest_numbers(backtest: Backtest, periods_per_year: float, seed: int) -> BacktestNumbers:
    """Every metric of `KNOWN_METRICS`, the headline ones with bands, and what validations need."""
    curve = backtest.curve
    outcomes = tuple(
        TradeOutcome(profit, before, after, closed)
        for profit, before, after, closed in zip(
            *(backtest.trades[name].tolist() for name in ("profit", "equity_before", "equity_after", "closed")),
            strict=True,
        )
    )
    own = curve_statistics(curve["equity"], periods_per_year)
    held = curve_statistics(curve["buy_and_hold"], periods_per_year)
    traded = trade_statistics(outcomes) | {
        "turnover": backtest.turnover,
        "costs": backtest.costs,
        "exposure_fraction": float((curve["position"].iloc[1:] != 0).mean()) if len(curve) > 1 else 0.0,
    }
    excess = own["total_return_fraction"] - held["total_return_fraction"]
    return BacktestNumbers(
        metrics=own
        | traded
        | {f"buy_and_hold_{name}": held[name] for name in CURVE_METRICS}
        | {"excess_total_return_fraction": excess},
        bands=bootstrap_bands(curve["equity"], periods_per_year, seed),
        returns=tuple(simple_returns(curve["equity"]).tolist()),
        trades=outcomes,
    )


class HeldOutBacktester:
    """Backtests a policy on the test part of a frozen frame; keeps the pass for the report."""

    def __init__(self, policy: Policy, frame: pd.DataFrame, frozen: FrozenData) -> None:
        self._policy, self._frame, self._frozen = policy, frame, frozen
        self.result: Backtest | None = None

    def backtest(self, request: TrainingRequest) -> BacktestNumbers:
        """The numbers of one pass over the test rows; raises DataUnusable where they are too few."""
        frozen, seed = self._frozen, request.agent.seed
        rows = self._frame.iloc[frozen.bounds.test.first : frozen.bounds.test.last]
        market = market_data(rows, request.data.columns, frozen.observation_columns, frozen.normalisation)
        self.result = run_backtest(self._policy, market, request.env, seed)
        periods_per_year = request.evaluation.periods_per_year or frozen.periods_per_year
        return backtest_numbers(self.result, periods_per_year, seed)


def _traded_notional(market: MarketData, units: NDArray[np.float64]) -> float:
    fills = np.asarray(market.close if market.open is None else market.open)
    return float(np.abs(np.diff(units)) @ fills[1:])


def _trades(trades: Sequence[Trade], closed: int, market: MarketData, start_balance: float) -> pd.DataFrame:
    """As a frame; those after the first `closed` were open when the bars ended."""
    entry = np.array([trade.entry_bar for trade in trades], dtype=np.int64)
    leave = np.array([trade.exit_bar for trade in trades], dtype=np.int64)
    profit = np.array([trade.pnl for trade in trades], dtype=np.float64)
    after = start_balance + np.cumsum(profit)
    return pd.DataFrame(
        {
            "entry_time": pd.DatetimeIndex(market.times[entry], tz="UTC"),
            "exit_time": pd.DatetimeIndex(market.times[leave], tz="UTC"),
            "side": np.array([trade.side for trade in trades], dtype=np.int64),
            "entry_price": np.array([trade.entry_price for trade in trades], dtype=np.float64),
            "exit_price": np.array([trade.exit_price for trade in trades], dtype=np.float64),
            "profit": profit,
            "costs": np.array([trade.cost for trade in trades], dtype=np.float64),
            "bars": leave - entry,
            "equity_before": after - profit,
            "equity_after": after,
            "closed": np.arange(len(trades)) < closed,
        }
    )
