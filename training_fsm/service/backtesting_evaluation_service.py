"""Whether a trained model is good enough: the gate's bounds and the family's validations on a backtest's numbers."""

import math
from dataclasses import dataclass
from typing import Protocol

from training_fsm.domain.events import EvaluationFinished
from training_fsm.domain.facts import Artifact, MetricBand, Verdict
from training_fsm.domain.metrics import BacktestNumbers
from training_fsm.domain.request import EvaluationSettings, GateRule, TrainingRequest
from training_fsm.domain.validations import Validation, validation


class Backtester(Protocol):
    """Plays the trained policy over the test part once."""

    def backtest(self, request: TrainingRequest) -> BacktestNumbers:
        """The numbers of one deterministic pass."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a backtest was worth."""

    metrics: dict[str, float]
    bands: tuple[MetricBand, ...]
    gate: tuple[Verdict, ...]
    validations: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Every rule of the gate and every validation; without any, everything passes."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of what did not pass, as ModelRejected says them."""
        return tuple(verdict.name for verdict in (*self.gate, *self.validations) if not verdict.passed)

    def finished(self, report: Artifact) -> EvaluationFinished:
        """The event, once the report is stored."""
        return EvaluationFinished(
            metrics=self.metrics,
            bands=self.bands,
            gate=self.gate,
            validations=self.validations,
            passed=self.passed,
            report=report,
        )


class BacktestingEvaluationService:
    """Backtests a model and judges it by what its request asks."""

    def __init__(self, backtester: Backtester) -> None:
        self._backtester = backtester

    def evaluate(self, request: TrainingRequest) -> Evaluation:
        """Backtest and judge."""
        judges = _judges(request.evaluation)
        numbers = self._backtester.backtest(request)
        return Evaluation(
            metrics=numbers.metrics,
            bands=numbers.bands,
            gate=tuple(gate_verdict(rule, numbers.metrics[rule.metric]) for rule in request.evaluation.gate),
            validations=tuple(judge.verdict(numbers) for judge in judges),
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


def _judges(settings: EvaluationSettings) -> tuple[Validation, ...]:
    return tuple(validation(spec.name, spec.config) for spec in settings.validations)
