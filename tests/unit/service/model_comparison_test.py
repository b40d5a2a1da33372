from collections.abc import Callable

import pytest

from training_fsm.domain import events as e
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import ModelRef
from training_fsm.domain.machine import destination
from training_fsm.domain.run import Run
from training_fsm.service.model_comparison import Difference, Kinship, Place, compare, kinship

Life = tuple[e.Event, ...]
A, B, C, D, E = (ModelRef(name=name, version=1) for name in "abcde")


def _run(events: Life) -> Run:
    run = None
    for event in events:
        run = evolve(run, "r", event, destination(run, event))
    assert run is not None
    return run


@pytest.fixture
def first(life: Callable[[str], Life]) -> Run:
    """A registered run from scratch: eurusd-ppo/3."""
    return _run(life("r"))


@pytest.fixture
def second(continued_life: Callable[..., Life]) -> Run:
    """Its child with another seed, a longer range and other data: eurusd-ppo/4."""
    return _run(continued_life("s"))


def _places(*runs: Run) -> dict[ModelRef, Place]:
    found = [run.registered for run in runs if run.registered]
    return {ModelRef(name=model.name, version=model.version): Place(model.parent, model.depth) for model in found}


def test_what_differs_is_listed_and_what_does_not_is_counted(first: Run, second: Run) -> None:
    """Each difference has its path and both values, under the heading that it belongs to."""
    comparison = compare(first, second, _places(first, second))
    assert comparison.settings.different == (Difference(field="agent.seed", a="0", b="1"),)
    assert comparison.settings.equal > 30
    assert {difference.field for difference in comparison.data.different} == {"range.end", "digest"}
    assert (comparison.features.different, comparison.features.equal) == ((), 3)
    assert (comparison.fingerprint.different, comparison.fingerprint.equal) == ((), 11)
    assert comparison.kinship.model_dump() == {
        "common_ancestor": {"name": "eurusd-ppo", "version": 3}, "generations_a": 0, "generations_b": 1
    }  # fmt: skip


def test_bounds_and_normalisation_are_data(first: Run) -> None:
    """A part of the split that begins elsewhere, or another mean, is named by its path."""
    assert first.data is not None
    bounds = first.data.bounds
    test = bounds.test.model_copy(update={"first": 1400})
    column = first.data.normalisation[0].model_copy(update={"mean": 49.0})
    update = {"bounds": bounds.model_copy(update={"test": test}), "normalisation": (column,)}
    other = first.model_copy(update={"data": first.data.model_copy(update=update)})
    assert compare(first, other, _places(first)).data.different == (
        Difference(field="bounds.test.first", a="1351", b="1400"),
        Difference(field="normalisation.rsi", a="mean 50, deviation 10", b="mean 49, deviation 10"),
    )


def test_definitions_that_differ_are_named(first: Run) -> None:
    """A feature that only one has, and one that is computed otherwise; hash and semver beside them."""
    config = first.plan.feature_config
    (rsi,) = config.feature_definitions
    definitions = (rsi.model_copy(update={"enabled": False}), rsi.model_copy(update={"name": "adx"}))
    other = first.model_copy(
        update={"feature_config": config.model_copy(update={"hash": "x", "feature_definitions": definitions})}
    )
    found = compare(first, other, _places(first)).features
    assert [(difference.field, difference.a is None) for difference in found.different] == [
        ("feature_definitions.adx", True),
        ("feature_definitions.rsi", False),
        ("hash", False),
    ]
    assert found.equal == 1


def test_metrics_have_a_difference_where_both_are_numbers(first: Run) -> None:
    """Not a number twice is equal, so is what differs by rounding; infinite or missing has no difference."""
    assert first.evaluation is not None
    rounded = {**first.evaluation.metrics, "sharpe": first.evaluation.metrics["sharpe"] * (1 + 2e-16)}
    same = first.model_copy(update={"evaluation": first.evaluation.model_copy(update={"metrics": rounded})})
    assert compare(first, same, _places(first)).metrics.different == ()
    metrics = {"sharpe": 0.81, "profit_factor": float("nan"), "trades": 7.0, "calmar": 1.0}
    other = first.model_copy(update={"evaluation": first.evaluation.model_copy(update={"metrics": metrics})})
    found = compare(first, other, _places(first)).metrics
    assert [(metric.metric, metric.difference) for metric in found.different] == [
        ("sharpe", pytest.approx(0.2)),
        ("calmar", None),
        ("trades", None),
    ]
    assert (found.equal, found.same_test_bars) == (1, True)


def test_other_test_bars_are_said(first: Run) -> None:
    """Metrics of other bars are not to be held against each other."""
    assert first.data is not None
    bounds = first.data.bounds
    test = bounds.test.model_copy(update={"end": bounds.test.end.replace(year=2030)})
    data = first.data.model_copy(update={"bounds": bounds.model_copy(update={"test": test})})
    other = first.model_copy(update={"data": data})
    assert not compare(first, other, _places(first)).metrics.same_test_bars


def test_the_nearest_common_ancestor_is_found() -> None:
    """Parent and child, cousins, generations that nobody here knows, and strangers."""
    places = {A: Place(None, 0), B: Place(A, 1), C: Place(B, 2), D: Place(A, 4), E: Place(None, 0)}
    assert kinship(A, C, places) == Kinship(common_ancestor=A, generations_a=0, generations_b=2)
    assert kinship(C, B, places) == Kinship(common_ancestor=B, generations_a=1, generations_b=0)
    assert kinship(C, D, places) == Kinship(common_ancestor=A, generations_a=2, generations_b=4)
    assert kinship(C, E, places).common_ancestor is None
