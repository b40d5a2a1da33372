"""The one accounting, of the environment and of the backtest. Money in account currency, all of it float64."""

from math import log
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue, TypeAdapter

from training_fsm.core.market_data import MarketData
from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import Failure
from training_fsm.domain.request import EnvironmentConfig

RUIN_FRACTION = 0.001
"""An account that has no more than this fraction of its start balance is ruined; it also bounds one bar's loss."""


class Trade(NamedTuple):
    """One position from its opening fill to its closing fill."""

    entry_bar: int
    """Row of the bar in which it was opened."""
    exit_bar: int
    side: int
    """+1 long, -1 short."""
    entry_price: float
    """Average price of what was bought, or sold short, slippage included."""
    exit_price: float
    pnl: float
    """Profit after costs."""
    cost: float
    """Fees and slippage, both sides."""


class _AccountState(NamedTuple):
    cash: float
    units: float
    equity: float
    position: int
    entry_bar: int
    entry_price: float
    peak_equity: float
    day_equity: float
    breach: str | None
    fees_paid: float
    slippage_paid: float
    trade_start_cash: float
    trade_start_cost: float
    trades: list[Trade]


_STATE = TypeAdapter(_AccountState)


class Account:
    """An account that holds a position of -1, 0 or +1 times the largest open position.

    A target is decided on a bar's close and filled in the next bar: at its open where the market has one, else at its
    close. The size is `max_percentage_open_position` of the equity at the fill. A position held on is not resized,
    unless `min_percentage_open_position` is above 0 and its size has drifted from its target by at least so much.
    A fill pays `fee` of its notional, and slips by `slippage_atr_based` times the ATR of the bar it was decided on.

    All attributes are to be read, and written by this class only.
    """

    __slots__ = (*_AccountState._fields, "_atr", "_close", "_config", "_day", "_fill", "_market", "_share", "_slips")

    cash: float
    """Without the position's value; negative while a position is bought on margin."""
    units: float
    """Signed units held."""
    equity: float
    """cash + units x close."""
    position: int
    """-1 short, 0 flat, +1 long."""
    entry_bar: int
    entry_price: float
    peak_equity: float
    """Highest equity at a close since the start."""
    day_equity: float
    """Equity at the last close before the current UTC day."""
    breach: str | None
    """Which bound ended the account: `daily_drawdown`, `alltime_drawdown`, `ruin`; None while it goes on."""
    fees_paid: float
    slippage_paid: float
    trade_start_cash: float
    trade_start_cost: float
    trades: list[Trade]
    """Closed trades since the start."""

    def __init__(self, market: MarketData, config: EnvironmentConfig) -> None:
        self._market, self._config = market, config
        self._close = market.close
        self._fill = market.close if market.open is None else market.open
        self._day = market.day
        self._share = config.max_percentage_open_position / 100.0
        self._slips = config.slippage_atr_based > 0
        needs_days = config.max_daily_drawdown is not None and not market.day
        if (self._slips and market.atr is None) or needs_days:
            what = "bar times, env.max_daily_drawdown" if needs_days else "an ATR column, env.slippage_atr_based"
            raise DataUnusable(Failure(kind="data_unusable", words=f"expected {what} needs it"))
        self._atr = market.atr if market.atr is not None else []
        self.reset()

    def reset(self) -> None:
        """A new account: flat, with the start balance."""
        balance = self._config.start_balance
        self.cash = self.equity = self.peak_equity = self.day_equity = balance
        self.units = self.entry_price = self.fees_paid = self.slippage_paid = 0.0
        self.trade_start_cash = self.trade_start_cost = 0.0
        self.position = self.entry_bar = 0
        self.breach = None
        self.trades = []

    def advance(self, bar: int, target: int, generator: np.random.Generator) -> float:
        """Decide `target` (-1, 0, +1) on row `bar`, live through the next bar, and return the change of log equity.

        The generator is asked only where a fill may slip.
        """
        arriving = bar + 1
        before = self.equity
        held = self.position
        config = self._config
        longest = config.max_time_in_trade
        if longest is not None and held and held == target and arriving - self.entry_bar >= longest:
            target = 0
        if target != held:
            self._change(bar, target, generator)
        elif held and config.min_percentage_open_position > 0:
            self._resize(bar, generator)
        equity = self.equity = self.cash + self.units * self._close[arriving]
        if equity > self.peak_equity:
            self.peak_equity = equity
        self._watch(bar, before, equity)
        ratio = equity / before
        return log(ratio if ratio > RUIN_FRACTION else RUIN_FRACTION)

    def liquidate(self, bar: int) -> None:
        """Close an open position at row `bar`'s close, with a fee and without slippage; a backtest's end."""
        if self.position:
            self._close_position(bar, self._close[bar], 0.0)
            self.equity = self.cash

    @property
    def cost_paid(self) -> float:
        """Fees and slippage since the start."""
        return self.fees_paid + self.slippage_paid

    @property
    def drawdown(self) -> float:
        """Loss from the highest equity, as a fraction of it."""
        return 1.0 - self.equity / self.peak_equity

    def unrealised_return(self, bar: int) -> float:
        """Return of the open position at row `bar`'s close, on its entry price; costs of the exit not counted."""
        return self.position * (self._close[bar] / self.entry_price - 1.0) if self.position else 0.0

    def exposure(self, bar: int) -> float:
        """Signed value of the position at row `bar`'s close, as a fraction of equity."""
        return self.units * self._close[bar] / self.equity if self.units else 0.0

    def get_state(self) -> JsonValue:
        """Everything but market and configuration, as JSON."""
        state: JsonValue = _STATE.dump_python(
            _AccountState(*(getattr(self, name) for name in _AccountState._fields)), mode="json"
        )
        return state

    def set_state(self, state: JsonValue) -> None:
        """Go on from what `get_state` gave; raises pydantic.ValidationError on anything else."""
        for name, value in _STATE.validate_python(state)._asdict().items():
            setattr(self, name, value)

    def _change(self, bar: int, target: int, generator: np.random.Generator) -> None:
        arriving = bar + 1
        price = self._fill[arriving]
        slip = self._slippage(bar, generator)
        if self.position:
            self._close_position(arriving, price, slip)
        if target and self.cash > 0:
            self.trade_start_cash, self.trade_start_cost = self.cash, self.cost_paid
            self.position, self.entry_bar = target, arriving
            units = target * self._share * self.cash / price
            self.entry_price = self._trade(units, price, slip)

    def _resize(self, bar: int, generator: np.random.Generator) -> None:
        price = self._fill[bar + 1]
        equity = self.cash + self.units * price
        change = self.position * self._share * equity / price - self.units
        if equity > 0 and abs(change) * price * 100.0 >= self._config.min_percentage_open_position * equity:
            before = self.units
            filled = self._trade(change, price, self._slippage(bar, generator))
            if change * self.position > 0:
                self.entry_price = (self.entry_price * before + filled * change) / self.units

    def _close_position(self, bar: int, price: float, slip: float) -> None:
        exit_price = self._trade(-self.units, price, slip)
        pnl, cost = self.cash - self.trade_start_cash, self.cost_paid - self.trade_start_cost
        self.trades.append(Trade(self.entry_bar, bar, self.position, self.entry_price, exit_price, pnl, cost))
        self.position, self.units, self.entry_price = 0, 0.0, 0.0

    def _trade(self, units: float, price: float, slip: float) -> float:
        """Buy (or sell, where negative) at a price that slips against us; returns the price paid."""
        paid = price + slip if units > 0 else max(price - slip, 0.0)
        fee = self._config.fee * abs(units) * paid
        self.cash -= units * paid + fee
        self.units += units
        self.fees_paid += fee
        self.slippage_paid += abs(units) * abs(paid - price)
        return paid

    def _slippage(self, bar: int, generator: np.random.Generator) -> float:
        if not self._slips:
            return 0.0
        probability = self._config.slippage_against_trade_probability
        if probability < 1.0 and generator.random() >= probability:
            return 0.0
        return self._config.slippage_atr_based * self._atr[bar]

    def _watch(self, bar: int, before: float, equity: float) -> None:
        config = self._config
        if config.max_daily_drawdown is not None:
            if self._day[bar + 1] != self._day[bar]:
                self.day_equity = before
            if equity < self.day_equity * (1.0 - config.max_daily_drawdown):
                self.breach = "daily_drawdown"
        if config.max_alltime_drawdown is not None and equity < self.peak_equity * (1.0 - config.max_alltime_drawdown):
            self.breach = "alltime_drawdown"
        if equity <= config.start_balance * RUIN_FRACTION:
            self.breach = "ruin"
