import math

import pytest

from training_fsm.domain.errors import TrainingFsmError
from training_fsm.domain.facts import Contest, ModelRef
from training_fsm.domain.metrics import KNOWN_METRICS, BacktestNumbers, TradeOutcome, known_metric
from training_fsm.domain.request import ChampionRule, EvaluationSettings, GateRule, TrainingRequest, ValidationSpec
from training_fsm.domain.validations import VALIDATIONS, validation
from training_fsm.service.backtesting_evaluation_service import (
    BacktestingEvaluationService,
    champion_verdict,
    gate_verdict,
)


def _request(evaluation: EvaluationSettings) -> TrainingRequest:
    return TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "eurusd-ppo",
            "symbol": "EURUSD",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "rsi"}]},
            "data": {"columns": {"close": "close"}},
            "evaluation": evaluation,
        }
    )


def _numbers(returns: tuple[float, ...] = (), profits: tuple[float, ...] = (), **metrics: float) -> BacktestNumbers:
    equity, trades = 1000.0, []
    for profit in profits:
        trades.append(TradeOutcome(profit, equity, equity + profit))
        equity += profit
    return BacktestNumbers(
        metrics=dict.fromkeys(KNOWN_METRICS, 0.0) | metrics, bands=(), returns=returns, trades=tuple(trades)
    )


class Recorded:
    """A backtester that has the numbers already, and counts how often it is asked."""

    def __init__(self, numbers: BacktestNumbers) -> None:
        self.numbers, self.asked = numbers, 0

    def backtest(self, request: TrainingRequest) -> BacktestNumbers:
        """The numbers."""
        self.asked += 1
        return self.numbers


class NoRing:
    """Nobody asks for a contest here."""

    def fight(self, request: TrainingRequest, metric: str) -> Contest:
        """Fails the test."""
        raise AssertionError("no contest was asked for")


def test_everything_must_pass() -> None:
    """One failed rule or validation fails the evaluation, and is named; the event carries every verdict."""
    settings = EvaluationSettings(
        gate=(GateRule(metric="sharpe", min=0.5), GateRule(metric="trades", min=1, max=10)),
        validations=(ValidationSpec(name="MaxDrawdownValidation", config={"max_drawdown_pct": 5}),),
    )
    backtester = Recorded(_numbers(returns=(0.1, -0.08), sharpe=1.0, trades=11))
    judgement = BacktestingEvaluationService(backtester, NoRing()).evaluate(_request(settings))
    assert judgement.failed == ("trades", "MaxDrawdownValidation")
    assert not judgement.passed
    assert [verdict.passed for verdict in (*judgement.gate, *judgement.validations)] == [True, False, False]


def test_without_rules_everything_passes() -> None:
    """A request that asks nothing gets a pass, with the metrics."""
    service = BacktestingEvaluationService(Recorded(_numbers(sharpe=-3.0)), NoRing())
    judgement = service.evaluate(_request(EvaluationSettings()))
    assert judgement.passed
    assert judgement.metrics["sharpe"] == -3.0
    assert judgement.contest is None


CONTEST = Contest(champion=ModelRef(name="eurusd-ppo", version=2), stream_version=4, metric="sharpe", bars=200)


@pytest.mark.parametrize(
    ("rule", "challenger", "champion", "passed"),
    [
        (ChampionRule(), 0.8, 0.5, True),
        (ChampionRule(), 0.5, 0.5, False),
        (ChampionRule(margin=0.5), 0.8, 0.5, False),
        (ChampionRule(metric="max_drawdown_fraction"), 0.1, 0.2, True),
        (ChampionRule(metric="max_drawdown_fraction"), 0.3, 0.2, False),
        (ChampionRule(metric="max_drawdown_fraction", margin=0.05), 0.16, 0.2, False),
        (ChampionRule(), math.nan, 0.5, False),
        (ChampionRule(), 0.5, math.nan, False),
    ],
)
def test_a_challenger_must_be_better_by_more_than_the_margin(
    rule: ChampionRule, challenger: float, champion: float, passed: bool
) -> None:
    """A tie is the champion's, less loss is better, and what is no number beats nobody."""
    contest = CONTEST.model_copy(
        update={"challenger_metrics": {rule.metric: challenger}, "champion_metrics": {rule.metric: champion}}
    )
    verdict = champion_verdict(rule, contest)
    assert verdict.passed is passed
    assert "eurusd-ppo/2" in verdict.explanation


def test_without_a_champion_nobody_has_to_be_beaten() -> None:
    """The first challenger becomes champion; one that cannot be compared does not."""
    assert champion_verdict(ChampionRule(), CONTEST.model_copy(update={"champion": None})).passed
    obstacle = CONTEST.model_copy(update={"obstacle": "3 bars lie behind the training of both"})
    verdict = champion_verdict(ChampionRule(), obstacle)
    assert (verdict.passed, verdict.explanation) == (False, "3 bars lie behind the training of both")


def test_the_contest_is_one_rule_of_the_gate() -> None:
    """A good model that does not beat the champion is not registered."""
    lost = CONTEST.model_copy(update={"challenger_metrics": {"sharpe": 0.1}, "champion_metrics": {"sharpe": 0.5}})

    class Ring:
        def fight(self, request: TrainingRequest, metric: str) -> Contest:
            assert metric == "sharpe"
            return lost

    settings = EvaluationSettings(gate=(GateRule(metric="trades", min=0),), champion=ChampionRule())
    judgement = BacktestingEvaluationService(Recorded(_numbers(sharpe=9.0)), Ring()).evaluate(_request(settings))
    assert (judgement.passed, judgement.failed, judgement.contest) == (False, ("champion",), lost)


@pytest.mark.parametrize(
    ("rule", "score", "passed", "threshold"),
    [
        (GateRule(metric="sharpe", min=0.5), 0.5, True, 0.5),
        (GateRule(metric="sharpe", min=0.5), 0.499, False, 0.5),
        (GateRule(metric="sharpe", max=2.0), 2.1, False, 2.0),
        (GateRule(metric="sharpe", min=0.5, max=2.0), 2.1, False, 2.0),
        (GateRule(metric="sharpe", min=0.5, max=2.0), 0.1, False, 0.5),
        (GateRule(metric="sharpe", min=0.0, max=0.0), 0.0, True, 0.0),
        (GateRule(metric="profit_factor", min=1.5), math.inf, True, 1.5),
        (GateRule(metric="sharpe", min=0.5), math.nan, False, 0.5),
        (GateRule(metric="sharpe", max=0.5), math.nan, False, 0.5),
    ],
)
def test_bounds_are_inclusive_and_nan_passes_none(rule: GateRule, score: float, passed: bool, threshold: float) -> None:
    """A score at its bound passes; the verdict names the bound that was missed."""
    verdict = gate_verdict(rule, score)
    assert (verdict.passed, verdict.threshold) == (passed, threshold)
    assert verdict.name in verdict.explanation


def test_unknown_names_are_refused_at_the_door() -> None:
    """An unknown metric, validation or parameter is an error that names it and what is known."""
    with pytest.raises(ValueError, match=r"expected one of .*sharpe.*'sharp'"):
        known_metric("sharp")
    with pytest.raises(ValueError, match=r"SharpeRatioValidation.*'MonteCarloValidation'"):
        ValidationSpec(name="MonteCarloValidation")
    with pytest.raises(ValueError, match="sharp"):
        GateRule(metric="sharp", min=1)
    with pytest.raises(ValueError, match=r"config.min_sharp: .*SharpeRatioValidation"):
        validation("SharpeRatioValidation", {"min_sharp": 1})
    with pytest.raises(ValueError, match=r"config.min_win_rate: .*100"):
        validation("WinRateValidation", {"min_win_rate": 101})


@pytest.mark.parametrize(
    ("name", "config", "numbers", "score", "passed"),
    [
        ("SharpeRatioValidation", {"window": 4}, _numbers((0.1, -0.1, 0.1)), 0.57735, False),
        ("SharpeRatioValidation", {"window": 4, "min_sharpe": 0.5}, _numbers((0.1, -0.1, 0.1)), 0.57735, True),
        ("SharpeRatioValidation", {}, _numbers((0.1,)), 0.0, False),
        ("MaxDrawdownValidation", {}, _numbers((0.1, -0.1, 0.1)), 10.0, True),
        ("MaxDrawdownValidation", {"max_drawdown_pct": 9.9}, _numbers((0.1, -0.1, 0.1)), 10.0, False),
        ("CalmarRatioValidation", {"annualization_factor": 3}, _numbers((0.1, -0.1, 0.1)), 0.89, True),
        (
            "CalmarRatioValidation",
            {"annualization_factor": 1, "lookback_years": 2},
            _numbers((-0.5, 0.1, 0.1)),
            math.inf,
            True,
        ),
        ("CalmarRatioValidation", {}, _numbers(), 0.0, False),
        ("WinRateValidation", {"min_trade_count": 4}, _numbers(profits=(1, -1, 2, -3)), 50.0, True),
        (
            "WinRateValidation",
            {"min_trade_count": 4, "require_profit": True},
            _numbers(profits=(1, -1, 2, -3)),
            50.0,
            False,
        ),
        ("WinRateValidation", {}, _numbers(profits=(1, 1, 1)), 0.0, False),
        ("ProfitFactorValidation", {}, _numbers(profits=(3, -2)), 1.5, True),
        ("ProfitFactorValidation", {}, _numbers(profits=(3, -2.1)), 3 / 2.1, False),
        ("ProfitFactorValidation", {}, _numbers(profits=(3,)), math.inf, True),
        ("ProfitFactorValidation", {"min_profit_factor": 0}, _numbers(), 0.0, False),
        ("MaxConsecutiveLossesValidation", {}, _numbers(profits=(-1,) * 5 + (1,) + (-1,) * 4), 5, True),
        ("MaxConsecutiveLossesValidation", {}, _numbers(profits=(-1,) * 6), 6, False),
        ("MaxConsecutiveLossesValidation", {}, _numbers(), 0, True),
        ("MaxConsecutiveLossesValidation", {"consider_drawdown": True}, _numbers(profits=(-100, -60)), 2, False),
        ("MaxConsecutiveLossesValidation", {"consider_drawdown": True}, _numbers(profits=(-100, 50, -60)), 1, True),
    ],
)
def test_validations_worked_out_by_hand(
    name: str, config: dict[str, float], numbers: BacktestNumbers, score: float, passed: bool
) -> None:
    """Each validation gives the score that its definition gives by hand, and passes at its threshold."""
    verdict = validation(name, config).verdict(numbers)
    assert verdict.name == name
    assert verdict.score == pytest.approx(score, rel=1e-4)
    assert verdict.passed is passed
    assert verdict.explanation


def test_every_validation_has_the_defaults_of_the_family() -> None:
    """With no parameters each takes the family's."""
    defaults = {name: kind().model_dump() for name, kind in VALIDATIONS.items()}
    assert defaults == {
        "SharpeRatioValidation": {"min_sharpe": 1.0, "window": 252},
        "MaxDrawdownValidation": {"max_drawdown_pct": 10.0},
        "CalmarRatioValidation": {"min_calmar": 0.5, "lookback_years": 3.0, "annualization_factor": 252.0},
        "WinRateValidation": {"min_win_rate": 40.0, "min_trade_count": 10, "require_profit": False},
        "ProfitFactorValidation": {"min_profit_factor": 1.5},
        "MaxConsecutiveLossesValidation": {
            "max_consecutive_losses": 5,
            "consider_drawdown": False,
            "max_drawdown_during_streak": 15.0,
        },
    }


def test_a_failing_backtest_fails_the_evaluation() -> None:
    """What the backtester raises is not swallowed."""

    class Broken:
        def backtest(self, request: TrainingRequest) -> BacktestNumbers:
            raise TrainingFsmError("no test rows")

    with pytest.raises(TrainingFsmError, match="no test rows"):
        BacktestingEvaluationService(Broken(), NoRing()).evaluate(_request(EvaluationSettings()))
