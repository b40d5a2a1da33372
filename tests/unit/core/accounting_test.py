from math import log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_fsm.core.accounting import RUIN_FRACTION, Account
from training_fsm.core.market_data import MarketData, market_data
from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.request import EnvironmentConfig, PriceColumns

BALANCE = 10_000.0


def market(close: list[float], open_: list[float] | None = None, atr: list[float] | None = None) -> MarketData:
    """Bars of six hours, four a day."""
    frame = pd.DataFrame({"close": close})
    frame["event_timestamp"] = pd.date_range("2020-01-01", periods=len(close), freq="6h", tz="UTC")
    if open_ is not None:
        frame["open"] = open_
    if atr is not None:
        frame["atr"] = atr
    columns = PriceColumns(close="close", open="open" if open_ else None, atr="atr" if atr else None)
    return market_data(frame, columns, ())


def live(account: Account, targets: list[int]) -> list[float]:
    """Decide one target a bar from row 0 on; the log returns."""
    generator = np.random.default_rng(0)
    return [account.advance(bar, target, generator) for bar, target in enumerate(targets)]


prices = st.lists(st.floats(50.0, 200.0), min_size=8, max_size=8)
paths = st.lists(st.sampled_from([-1, 0, 1]), min_size=7, max_size=7)


@given(prices)
def test_flat_costs_nothing(close: list[float]) -> None:
    """Without a position nothing changes, whatever prices do."""
    account = Account(market(close), EnvironmentConfig(fee=0.01))
    assert live(account, [0] * 7) == [0.0] * 7
    assert (account.equity, account.cost_paid, account.trades) == (BALANCE, 0.0, [])


@pytest.mark.parametrize("side", [1, -1])
def test_round_trip_at_one_price_costs_two_fees(side: int) -> None:
    """At an unmoved price a round trip loses the fee of the notional, once a side."""
    account = Account(market([100.0] * 4), EnvironmentConfig(fee=0.001))
    live(account, [side, side, 0])
    assert account.equity == pytest.approx(BALANCE - 2 * 0.001 * BALANCE)
    assert account.fees_paid == pytest.approx(2 * 0.001 * BALANCE)
    [trade] = account.trades
    assert (trade.side, trade.entry_bar, trade.exit_bar) == (side, 1, 3)
    assert trade.pnl == pytest.approx(-trade.cost) == pytest.approx(account.equity - BALANCE)


def test_close_fill_holds_from_the_next_close() -> None:
    """Decided on bar 0 and filled at bar 1's close, a long position earns bar 2's move and not bar 1's."""
    account = Account(market([100.0, 200.0, 220.0]), EnvironmentConfig(fee=0.0))
    assert live(account, [1, 1]) == [0.0, pytest.approx(log(1.1))]
    assert account.entry_price == 200.0


def test_open_fill_holds_from_the_next_open() -> None:
    """Where there is an open, the position earns from bar 1's open to its close, and not the gap before it."""
    account = Account(market([100.0, 165.0], [100.0, 150.0]), EnvironmentConfig(fee=0.0))
    assert live(account, [1]) == [pytest.approx(log(1.1))]


def test_short_mirrors_long() -> None:
    """Over one move and back flat, what long wins short loses."""
    close = [100.0, 100.0, 107.0, 93.0]
    profits = []
    for side in (1, -1):
        account = Account(market(close), EnvironmentConfig(fee=0.0))
        live(account, [side, side, 0])
        profits.append(account.equity - BALANCE)
    assert profits[0] == pytest.approx(-profits[1]) == pytest.approx(-0.07 * BALANCE)


@given(prices, paths, st.floats(0.0, 0.01), st.floats(0.0, 0.5), st.sampled_from([0.0, 5.0]))
def test_equity_is_conserved(close: list[float], targets: list[int], fee: float, slip: float, band: float) -> None:
    """Equity is the start balance, plus units held times price changes, minus costs; trades add up to it."""
    config = EnvironmentConfig(
        fee=fee, slippage_atr_based=slip, max_percentage_open_position=50.0, min_percentage_open_position=band
    )
    account = Account(market(close, atr=[1.0] * 8), config)
    generator = np.random.default_rng(0)
    gained = 0.0
    for bar, target in enumerate(targets):
        gained += account.units * (close[bar + 1] - close[bar])
        account.advance(bar, target, generator)
    assert account.equity == pytest.approx(BALANCE + gained - account.cost_paid)
    account.liquidate(7)
    assert account.equity == account.cash == pytest.approx(BALANCE + sum(trade.pnl for trade in account.trades))
    assert sum(trade.cost for trade in account.trades) == pytest.approx(account.cost_paid)


@given(prices, paths)
def test_log_returns_add_up(close: list[float], targets: list[int]) -> None:
    """The returns of all steps are the log of last over first equity."""
    account = Account(market(close), EnvironmentConfig(max_percentage_open_position=20.0))
    returns = live(account, targets)
    assert sum(returns) == pytest.approx(log(account.equity / BALANCE))


def test_flip_is_one_trade_closed_and_one_opened() -> None:
    """From long to short pays one fee for the old notional and one for the new."""
    account = Account(market([100.0] * 3), EnvironmentConfig(fee=0.001))
    live(account, [1, -1])
    assert account.position == -1
    assert [trade.side for trade in account.trades] == [1]
    assert account.fees_paid == pytest.approx(0.001 * (BALANCE + BALANCE + 0.998 * BALANCE), rel=1e-6)


def test_slippage_is_against_the_trade() -> None:
    """Buying pays more and selling gets less, by the share of the ATR of the bar that was decided on."""
    account = Account(market([100.0] * 3, atr=[2.0, 4.0, 8.0]), EnvironmentConfig(fee=0.0, slippage_atr_based=0.5))
    live(account, [1, 0])
    [trade] = account.trades
    assert (trade.entry_price, trade.exit_price) == (101.0, 98.0)
    assert account.slippage_paid == pytest.approx(100.0 * 3.0)


def test_slippage_happens_with_its_probability() -> None:
    """With probability 0.3 about three in ten fills slip, and the others pay the price."""
    bars = 2001
    config = EnvironmentConfig(fee=0.0, slippage_atr_based=0.0001, slippage_against_trade_probability=0.3)
    account = Account(market([100.0] * bars, atr=[1.0] * bars), config)
    live(account, [bar % 2 for bar in range(bars - 1)])
    fills = [price != 100.0 for trade in account.trades for price in (trade.entry_price, trade.exit_price)]
    assert sum(fills) / len(fills) == pytest.approx(0.3, abs=0.04)


def test_size_is_the_largest_open_position() -> None:
    """A target is so many percent of the equity at the fill."""
    account = Account(market([100.0] * 2), EnvironmentConfig(fee=0.0, max_percentage_open_position=250.0))
    live(account, [-1])
    assert account.units == -250.0
    assert account.exposure(1) == -2.5


def test_held_position_is_not_resized_without_a_threshold() -> None:
    """Holding a target trades nothing, however far the position has drifted from it."""
    account = Account(market([100.0, 100.0, 150.0, 150.0]), EnvironmentConfig(max_percentage_open_position=50.0))
    live(account, [1, 1, 1])
    assert account.units == 50.0


def test_changes_below_the_threshold_are_not_traded() -> None:
    """A drift of 10 percent of equity is left alone at a threshold of 11 and traded away at one of 9."""
    close = [100.0, 100.0, 150.0, 150.0]  # half of equity becomes 0.6 of it
    for threshold, exposure in ((11.0, 0.6), (9.0, 0.5)):
        config = EnvironmentConfig(fee=0.0, max_percentage_open_position=50.0, min_percentage_open_position=threshold)
        account = Account(market(close), config)
        live(account, [1, 1, 1])
        assert account.exposure(3) == pytest.approx(exposure)


@pytest.mark.parametrize("bars", [1, 2, 5])
def test_longest_time_in_trade(bars: int) -> None:
    """A position held on is closed after exactly so many bars, and may be opened again after it."""
    account = Account(market([100.0] * 20), EnvironmentConfig(fee=0.0, max_time_in_trade=bars))
    live(account, [1] * 19)
    assert {trade.exit_bar - trade.entry_bar for trade in account.trades} == {bars}
    assert len(account.trades) >= 2


def test_daily_drawdown_counts_from_the_day_before() -> None:
    """A bar of 6 hours: losses of 4 percent on two days breach no bound of 5, within one day they do."""
    config = EnvironmentConfig(fee=0.0, max_daily_drawdown=0.05)
    over_night = Account(market([100.0, 100.0, 100.0, 96.0, 92.5, 92.5]), config)
    live(over_night, [1] * 5)
    assert over_night.breach is None
    one_day = Account(market([100.0, 100.0, 96.0, 92.5]), config)
    live(one_day, [1] * 3)
    assert one_day.breach == "daily_drawdown"


def test_alltime_drawdown_counts_from_the_peak() -> None:
    """Above the start balance, but 10 percent below the peak."""
    account = Account(market([100.0, 100.0, 150.0, 134.0]), EnvironmentConfig(fee=0.0, max_alltime_drawdown=0.1))
    live(account, [1] * 2)
    assert account.breach is None
    account.advance(2, 1, np.random.default_rng(0))
    assert account.breach == "alltime_drawdown"
    assert account.drawdown == pytest.approx(1 - 134 / 150)


def test_ruin_ends_the_account_with_a_finite_return() -> None:
    """A loss of more than everything, on margin, gives a bounded log return."""
    account = Account(market([100.0, 100.0, 80.0]), EnvironmentConfig(fee=0.0, max_percentage_open_position=1000.0))
    returns = live(account, [1, 1])
    assert account.breach == "ruin"
    assert returns[-1] == log(RUIN_FRACTION)


def test_missing_atr_is_named() -> None:
    """Slippage without an ATR column is refused."""
    with pytest.raises(DataUnusable, match="slippage_atr_based"):
        Account(market([100.0] * 2), EnvironmentConfig(slippage_atr_based=0.1))


def test_bad_prices_are_named() -> None:
    """A price of zero and a hole are refused with column and row."""
    with pytest.raises(DataUnusable, match=r"price 'close' must be above 0, row 1 has 0"):
        market([100.0, 0.0])
    with pytest.raises(DataUnusable, match=r"column 'close' has 1 rows that are not finite, the first is row 1"):
        market([100.0, float("nan")])
