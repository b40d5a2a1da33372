"""Whether a trained model is good enough: the gate's bounds and the family's validations on a backtest's numbers."""

import math
from typing import Protocol

from training_fsm.domain.facts import Contest, Judgement, Verdict
from training_fsm.domain.metrics import LOWER_IS_BETTER, BacktestNumbers
from training_fsm.domain.request import ChampionRule, EvaluationSettings, GateRule, TrainingRequest
from training_fsm.domain.validations import Validation, validation


class Backtester(Protocol):
    """Plays the trained policy over the test part once."""

    def backtest(self, request: TrainingRequest) -> BacktestNumbers:
        """The numbers of one deterministic pass."""
        ...


class Ring(Protocol):
    """Where a challenger meets the champion."""

    def fight(self, request: TrainingRequest, metric: str) -> Contest:
        """Both on the same bars, afresh."""
        ...


class BacktestingEvaluationService:
    """Backtests a model and judges it by what its request asks."""

    def __init__(self, backtester: Backtester, ring: Ring) -> None:
        self._backtester, self._ring = backtester, ring

    def evaluate(self, request: TrainingRequest) -> Judgement:
        """Backtest and judge."""
        judges = _judges(request.evaluation)
        numbers = self._backtester.backtest(request)
        gate = tuple(gate_verdict(rule, numbers.metrics[rule.metric]) for rule in request.evaluation.gate)
        contest = None
        if (rule := request.evaluation.champion) is not None:
            contest = self._ring.fight(request, rule.metric)
            gate = (*gate, champion_verdict(rule, contest))
        validations = tuple(judge.verdict(numbers) for judge in judges)
        return Judgement(
            metrics=numbers.metrics,
            bands=numbers.bands,
            gate=gate,
            validations=validations,
            passed=all(verdict.passed for verdict in (*gate, *validations)),
            contest=contest,
        )


def gate_verdict(rule: GateRule, score: float) -> Verdict:
    """Bounds are inclusive; a score that is not a number passes no bound."""
    below = rule.min is not None and not score >= rule.min
    above = rule.max is not None and not score <= rule.max
    bounds = [f"at least {rule.min:g}"] if rule.min is not None else []
    bounds += [f"at most {rule.max:g}"] if rule.max is not None else []
    threshold = rule.max if rule.min is None or (above and not below) else rule.min
    return Verdict(
        name=rule.metric,
        passed=not (below or above),
        score=score,
        threshold=math.nan if threshold is None else threshold,
        explanation=f"{rule.metric} is {score:.6g}, {' and '.join(bounds)} wanted",
    )


def champion_verdict(rule: ChampionRule, contest: Contest) -> Verdict:
    """The challenger's metric must be better by more than the margin; without a champion there is nobody to beat."""
    if contest.champion is None:
        words = "there is no champion yet"
        return Verdict(name="champion", passed=True, score=math.nan, threshold=math.nan, explanation=words)
    if contest.obstacle is not None:
        return Verdict(name="champion", passed=False, score=math.nan, threshold=math.nan, explanation=contest.obstacle)
    sign = -1.0 if rule.metric in LOWER_IS_BETTER else 1.0
    score, held = contest.challenger_metrics[rule.metric], contest.champion_metrics[rule.metric]
    threshold = held + sign * rule.margin
    bound = "below" if sign < 0 else "above"
    return Verdict(
        name="champion",
        passed=sign * score > sign * threshold,
        score=score,
        threshold=threshold,
        explanation=f"{rule.metric} is {score:.6g} on {contest.bars} bars, {bound} {threshold:.6g} wanted: "
        f"champion {contest.champion} has {held:.6g}",
    )


def _judges(settings: EvaluationSettings) -> tuple[Validation, ...]:
    return tuple(validation(spec.name, spec.config) for spec in settings.validations)
