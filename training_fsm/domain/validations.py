"""The family's backtesting validations that need nothing but a backtest's numbers.

Names, parameters and defaults are the family's; a request names the ones that it must pass.
"""

import math
from collections.abc import Mapping, Sequence

from pydantic import Field, JsonValue, ValidationError

from training_fsm.domain.facts import Verdict
from training_fsm.domain.metrics import BacktestNumbers, TradeOutcome
from training_fsm.domain.model import Model


class Validation(Model):
    """A validation with its parameters; the class name is its name in a request."""

    def verdict(self, numbers: BacktestNumbers) -> Verdict:
        """Judge a backtest."""
        raise NotImplementedError

    def _verdict(self, passed: bool, score: float, threshold: float, explanation: str) -> Verdict:
        return Verdict(
            name=type(self).__name__, passed=passed, score=score, threshold=threshold, explanation=explanation
        )


class SharpeRatioValidation(Validation):
    """Mean over standard deviation of the bars' returns, times sqrt(window)."""

    min_sharpe: float = 1.0
    window: int = Field(default=252, gt=0)
    """Bars per year, as in the family; the metric `sharpe` takes them from the data."""

    def verdict(self, numbers: BacktestNumbers) -> Verdict:
        """Passes from `min_sharpe` on."""
        score = _sharpe(numbers.returns) * math.sqrt(self.window)
        words = f"Sharpe ratio {score:.2f} at {self.window} bars a year, at least {self.min_sharpe:g} wanted"
        return self._verdict(score >= self.min_sharpe, score, self.min_sharpe, words)


class MaxDrawdownValidation(Validation):
    """The deepest fall below an earlier peak, in percent."""

    max_drawdown_pct: float = Field(default=10.0, ge=0)

    def verdict(self, numbers: BacktestNumbers) -> Verdict:
        """Passes up to `max_drawdown_pct`."""
        score = 100 * _max_drawdown(numbers.returns)
        words = f"Deepest drawdown {score:.2f} %, at most {self.max_drawdown_pct:g} % wanted"
        return self._verdict(score <= self.max_drawdown_pct, score, self.max_drawdown_pct, words)


class CalmarRatioValidation(Validation):
    """Annual return over the deepest drawdown of the last years."""

    min_calmar: float = 0.5
    lookback_years: float = Field(default=3.0, gt=0)
    annualization_factor: float = Field(default=252.0, gt=0)
    """Bars per year."""

    def verdict(self, numbers: BacktestNumbers) -> Verdict:
        """Passes from `min_calmar` on; without a drawdown a gain is infinitely good."""
        bars = max(1, int(self.lookback_years * self.annualization_factor))
        returns = numbers.returns[-bars:]
        annual, fall = _annual_return(returns, self.annualization_factor), _max_drawdown(returns)
        score = _ratio(annual, fall)
        words = (
            f"Calmar ratio {score:.2f} (annual return {annual:.2%}, drawdown {fall:.2%}) over the last "
            f"{len(returns)} bars, at least {self.min_calmar:g} wanted"
        )
        return self._verdict(score >= self.min_calmar, score, self.min_calmar, words)


class WinRateValidation(Validation):
    """Share of closed trades with a profit, in percent."""

    min_win_rate: float = Field(default=40.0, ge=0, le=100)
    """Percent."""
    min_trade_count: int = Field(default=10, ge=1)
    require_profit: bool = False
    """The closed trades together must have earned something."""

    def verdict(self, numbers: BacktestNumbers) -> Verdict:
        """Fails below `min_trade_count` closed trades, whatever they earned."""
        profits = [trade.profit for trade in numbers.trades if trade.closed]
        if len(profits) < self.min_trade_count:
            words = f"{len(profits)} closed trades, at least {self.min_trade_count} wanted"
            return self._verdict(False, 0.0, self.min_win_rate, words)
        score = 100 * sum(profit > 0 for profit in profits) / len(profits)
        total = math.fsum(profits)
        passed = score >= self.min_win_rate and (total > 0 or not self.require_profit)
        words = f"{score:.2f} % of {len(profits)} closed trades won, at least {self.min_win_rate:g} % wanted"
        if self.require_profit:
            words += f"; together they earned {total:.2f}, a profit wanted"
        return self._verdict(passed, score, self.min_win_rate, words)


class ProfitFactorValidation(Validation):
    """Sum of the profits over the sum of the losses of closed trades."""

    min_profit_factor: float = Field(default=1.5, ge=0)

    def verdict(self, numbers: BacktestNumbers) -> Verdict:
        """Fails without a closed trade; without a loss a profit is infinitely good."""
        profits = [trade.profit for trade in numbers.trades if trade.closed]
        gains, losses = math.fsum(p for p in profits if p > 0), -math.fsum(p for p in profits if p < 0)
        score = _ratio(gains, losses)
        words = (
            f"Profit factor {score:.2f} (won {gains:.2f}, lost {losses:.2f} in {len(profits)} closed trades), "
            f"at least {self.min_profit_factor:g} wanted"
        )
        return self._verdict(bool(profits) and score >= self.min_profit_factor, score, self.min_profit_factor, words)


class MaxConsecutiveLossesValidation(Validation):
    """The longest streak of closed trades with a loss."""

    max_consecutive_losses: int = Field(default=5, ge=1)
    consider_drawdown: bool = False
    max_drawdown_during_streak: float = Field(default=15.0, gt=0)
    """Percent of the equity before the streak; counts where `consider_drawdown` is on."""

    def verdict(self, numbers: BacktestNumbers) -> Verdict:
        """Passes up to the limit, and without a trade."""
        streaks = losing_streaks(numbers.trades)
        longest = max((len(streak) for streak in streaks), default=0)
        passed = longest <= self.max_consecutive_losses
        words = f"At most {longest} losses in a row, at most {self.max_consecutive_losses} wanted"
        if self.consider_drawdown:
            fall = max((_streak_fall_pct(streak) for streak in streaks), default=0.0)
            passed = passed and fall <= self.max_drawdown_during_streak
            words += f"; the deepest streak lost {fall:.2f} %, at most {self.max_drawdown_during_streak:g} % wanted"
        return self._verdict(passed, longest, self.max_consecutive_losses, words)


VALIDATIONS: Mapping[str, type[Validation]] = {kind.__name__: kind for kind in Validation.__subclasses__()}
"""Known to this version, by name."""


def validation(name: str, config: Mapping[str, JsonValue]) -> Validation:
    """The validation with its parameters; raises ValueError that names what is unknown or out of bounds."""
    if name not in VALIDATIONS:
        raise ValueError(f"name: this version knows {', '.join(VALIDATIONS)}; got {name!r}")
    try:
        return VALIDATIONS[name].model_validate(dict(config))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in ("config", *first["loc"]))
        raise ValueError(f"{path}: {first['msg']} ({name})") from error


def losing_streaks(trades: Sequence[TradeOutcome]) -> list[list[TradeOutcome]]:
    """Closed trades with a loss that follow each other directly."""
    streaks: list[list[TradeOutcome]] = []
    losing = False
    for trade in trades:
        if not trade.closed:
            continue
        if trade.profit < 0:
            if not losing:
                streaks.append([])
            streaks[-1].append(trade)
        losing = trade.profit < 0
    return streaks


def _streak_fall_pct(streak: Sequence[TradeOutcome]) -> float:
    start = streak[0].equity_before
    return 100 * (start - min(trade.equity_after for trade in streak)) / start if start > 0 else 100.0


def _ratio(upper: float, lower: float) -> float:
    """Nothing over nothing is 0, something over nothing infinite."""
    if lower > 0:
        return upper / lower
    return math.copysign(math.inf, upper) if upper else 0.0


def _sharpe(returns: Sequence[float]) -> float:
    if len(returns) < 2:
        return 0.0
    mean = math.fsum(returns) / len(returns)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in returns) / (len(returns) - 1))
    # Equal returns differ by rounding; a ratio over that would be noise.
    return _ratio(mean, deviation if deviation > 1e-12 * abs(mean) else 0.0)


def _annual_return(returns: Sequence[float], bars_per_year: float) -> float:
    if not returns:
        return 0.0
    if min(returns) <= -1:
        return -1.0
    # Beyond exp(700) floats end; a short test part can annualise to that.
    growth = math.fsum(math.log1p(r) for r in returns) * bars_per_year / len(returns)
    return math.expm1(min(growth, 700.0))


def _max_drawdown(returns: Sequence[float]) -> float:
    equity = peak = 1.0
    deepest = 0.0
    for r in returns:
        equity *= 1 + r
        peak = max(peak, equity)
        deepest = max(deepest, 1 - equity / peak)
    return deepest
