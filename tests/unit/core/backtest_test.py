from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training_fsm.client.digest import file_digest
from training_fsm.core.backtest import Backtest, backtest_numbers, run_backtest
from training_fsm.core.backtest_report import BacktestSummary, write_report
from training_fsm.core.market_data import MarketData, market_data
from training_fsm.domain.facts import Judgement
from training_fsm.domain.metrics import HEADLINE_METRICS, KNOWN_METRICS
from training_fsm.domain.request import EnvironmentConfig, PriceColumns

FREE = EnvironmentConfig(start_balance=1000.0, fee=0.0)
SHORT, FLAT, LONG = 0, 1, 2


class Script:
    """A policy that plays what is written down, then its last action for ever."""

    def __init__(self, *actions: int) -> None:
        self._next: Iterator[int] = iter(actions)
        self._last = FLAT

    def action(self, observation: np.ndarray) -> int:
        """The next action of the script."""
        self._last = next(self._next, self._last)
        return self._last


def _market(*close: float) -> MarketData:
    times = pd.date_range("2024-01-01", periods=len(close), freq="4h", tz="UTC")
    frame = pd.DataFrame({"event_timestamp": times, "close": close, "feature": np.arange(len(close), dtype=float)})
    return market_data(frame, PriceColumns(close="close"), ["feature"])


def _summary(backtest: Backtest) -> Judgement:
    numbers = backtest_numbers(backtest, 252, 0)
    return Judgement(metrics=numbers.metrics, bands=numbers.bands, gate=(), validations=(), passed=True)


def test_a_backtest_worked_out_by_hand() -> None:
    """Long from 100 to 110, then short from 110 to 99 without costs: the equity and both trades are as by hand."""
    backtest = run_backtest(Script(LONG, LONG, SHORT, FLAT), _market(100, 100, 105, 110, 99), FREE, seed=0)
    assert backtest.curve["equity"].tolist() == pytest.approx([1000, 1000, 1050, 1100, 1210])
    assert backtest.curve["position"].tolist() == [0, 1, 1, -1, 0]
    assert backtest.trades["profit"].tolist() == pytest.approx([100, 110])
    assert backtest.trades["side"].tolist() == [1, -1]
    assert backtest.trades["closed"].tolist() == [True, True]
    assert backtest.trades["equity_before"].tolist() == pytest.approx([1000, 1100])
    assert backtest.curve["buy_and_hold"].tolist() == pytest.approx([1000, 1000, 1050, 1100, 990])


def test_an_open_position_is_closed_at_the_end_and_is_no_closed_trade() -> None:
    """The end of the bars pays the exit's fee, lists the trade as not closed, and counts it in no trade metric."""
    config = EnvironmentConfig(start_balance=1000.0, fee=0.01)
    backtest = run_backtest(Script(LONG), _market(100, 100, 120), config, seed=0)
    assert backtest.trades["closed"].tolist() == [False]
    assert backtest.curve["equity"].iloc[-1] == pytest.approx(1000 - 10 + 200 - 12)
    assert backtest.costs == pytest.approx(22)
    assert backtest.turnover == pytest.approx((1000 + 1200) / backtest.curve["equity"].mean())
    assert backtest_numbers(backtest, 252, 0).metrics["trades"] == 0


def test_always_long_equals_buy_and_hold() -> None:
    """A policy that is always long earns, bar for bar, what holding earns with the same fee."""
    close = 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.02, 300)))
    config = EnvironmentConfig(start_balance=1000.0, fee=0.002)
    backtest = run_backtest(Script(LONG), _market(*close), config, seed=0)
    assert backtest.curve["equity"].tolist() == pytest.approx(backtest.curve["buy_and_hold"].tolist())
    assert backtest_numbers(backtest, 252, 0).metrics["excess_total_return_fraction"] == pytest.approx(0.0)


def test_a_breached_bound_ends_the_trading_and_not_the_curve() -> None:
    """After a drawdown beyond the bound the account stays flat on the remaining bars, beside buy and hold."""
    config = EnvironmentConfig(start_balance=1000.0, fee=0.0, max_alltime_drawdown=0.1)
    backtest = run_backtest(Script(LONG), _market(100, 100, 80, 160, 320), config, seed=0)
    assert backtest.breach == "alltime_drawdown"
    assert backtest.curve["equity"].tolist() == pytest.approx([1000, 1000, 800, 800, 800])
    assert backtest.curve["buy_and_hold"].iloc[-1] == pytest.approx(3200)


def test_numbers_have_every_known_metric_in_order() -> None:
    """What a gate may name is exactly what a backtest gives, and the headline ones carry bands."""
    numbers = backtest_numbers(run_backtest(Script(LONG, FLAT), _market(100, 101, 102, 99), FREE, 0), 252, 0)
    assert tuple(numbers.metrics) == KNOWN_METRICS
    assert tuple(band.metric for band in numbers.bands) == HEADLINE_METRICS


def test_a_policy_that_never_trades_has_numbers() -> None:
    """No trade and a constant equity give zeros, not a fault."""
    numbers = backtest_numbers(run_backtest(Script(FLAT), _market(100, 90, 80), FREE, 0), 252, 0)
    own = [name for name in KNOWN_METRICS if not name.startswith(("buy_and_hold_", "excess_"))]
    assert {numbers.metrics[name] for name in own} == {0.0}
    assert numbers.trades == ()


def test_chance_slippage_follows_the_seed() -> None:
    """Two passes with one seed are equal, and a seed of its own gives other fills."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"event_timestamp": pd.date_range("2024-01-01", periods=80, freq="1h", tz="UTC")})
    frame["close"], frame["atr"] = generator.uniform(90, 110, 80), 1.0
    market = market_data(frame, PriceColumns(close="close", atr="atr"), ["atr"])
    config = EnvironmentConfig(slippage_atr_based=0.5, slippage_against_trade_probability=0.5)
    passes = [run_backtest(Script(*[LONG, SHORT] * 40), market, config, seed).curve for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(passes[0], passes[1])
    assert not passes[0]["equity"].equals(passes[2]["equity"])


def test_the_report_holds_curves_trades_a_plot_and_their_digests(tmp_path: Path) -> None:
    """The files read back as the backtest, the plot needs no network, and the summary names each file's digest."""
    backtest = run_backtest(Script(LONG, SHORT, FLAT), _market(100, 104, 99, 101, 100), FREE, seed=0)
    evaluation = _summary(backtest)
    equity, trades, plot, summary = write_report(tmp_path / "report", "run-1", backtest, evaluation)
    pd.testing.assert_frame_equal(pd.read_parquet(equity), backtest.curve)
    pd.testing.assert_frame_equal(pd.read_parquet(trades), backtest.trades)
    html = plot.read_text(encoding="utf-8")
    assert "run-1" in html
    assert '<script src="' not in html
    written = BacktestSummary.model_validate_json(summary.read_text(encoding="utf-8"))
    assert written.files == {path.name: file_digest(path) for path in (equity, trades, plot)}
    assert written.metrics == evaluation.metrics


def test_an_infinite_metric_survives_the_summary(tmp_path: Path) -> None:
    """A profit factor without losses is infinite, also after it was written as JSON and read again."""
    backtest = run_backtest(Script(LONG, FLAT), _market(100, 100, 110, 110), FREE, seed=0)
    summary = write_report(tmp_path, "run-1", backtest, _summary(backtest))[-1]
    written = BacktestSummary.model_validate_json(summary.read_text(encoding="utf-8"))
    assert written.metrics["profit_factor"] == float("inf")
