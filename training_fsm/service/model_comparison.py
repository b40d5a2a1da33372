"""What differs between two registered models, taken from the runs that they came from."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue, TypeAdapter

from training_fsm.domain.changes import leaves
from training_fsm.domain.continuation import changes_between
from training_fsm.domain.facts import ModelRef
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run

_DATA = ("symbol", "base_timeframe", "timeframe", "range")
"""Fields of a request that say which bars were asked for."""

_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


class Difference(Model):
    """A field in which two models differ; values as JSON, None where there is none."""

    field: str
    a: str | None
    b: str | None


class Compared(Model):
    """What differs of one kind of thing, and how many things do not."""

    different: tuple[Difference, ...]
    equal: int


class MetricDifference(Model):
    """A test metric that differs, and by how much `b` is above `a`; None where one of them has no such number."""

    metric: str
    a: float | None
    b: float | None
    difference: float | None


class ComparedMetrics(Model):
    """The metrics of both backtests; they say little beside each other where the test bars are not the same."""

    different: tuple[MetricDifference, ...]
    equal: int
    same_test_bars: bool


class Place(NamedTuple):
    """Where a model stands in its line."""

    parent: ModelRef | None
    """The nearest ancestor that is known of."""
    generation: int
    """Generations since the first of the line."""


class Kinship(Model):
    """How two models are related, as far as the log knows."""

    common_ancestor: ModelRef | None
    """The nearest; it may be one of the two."""
    generations_a: int | None
    """From the common ancestor down to `a`."""
    generations_b: int | None


class Comparison(Model):
    """Two models side by side."""

    a: ModelRef
    b: ModelRef
    kinship: Kinship
    data: Compared
    features: Compared
    settings: Compared
    fingerprint: Compared
    """What the bytes of the weights depend on besides data, request and seed; of the last segment."""
    metrics: ComparedMetrics


def compare(a: Run, b: Run, places: Mapping[ModelRef, Place]) -> Comparison:
    """What differs between the models of two runs that are REGISTERED; `places` has both and all their ancestors."""
    refs = _ref(a), _ref(b)
    settings = [_settings(run) for run in (a, b)]
    bars = [_bars(run) for run in (a, b)]
    asked = [{name: value for name, value in fields.items() if _of_data(name)} for fields in settings]
    rest = [{name: value for name, value in fields.items() if not _of_data(name)} for fields in settings]
    return Comparison(
        a=refs[0],
        b=refs[1],
        kinship=kinship(*refs, places),
        data=_compared(asked[0] | bars[0], asked[1] | bars[1]),
        features=_compared(_features(a.plan.feature_config), _features(b.plan.feature_config)),
        settings=_compared(*rest),
        fingerprint=_compared(*(_json_leaves(run.fingerprint) for run in (a, b))),
        metrics=_metrics(a, b),
    )


def kinship(a: ModelRef, b: ModelRef, places: Mapping[ModelRef, Place]) -> Kinship:
    """The nearest common ancestor of two models, and how far each is from it."""
    line_b = _line(b, places)
    for ancestor in _line(a, places):
        if ancestor in line_b:
            return Kinship(
                common_ancestor=ancestor,
                generations_a=places[a].generation - places[ancestor].generation,
                generations_b=places[b].generation - places[ancestor].generation,
            )
    return Kinship(common_ancestor=None, generations_a=None, generations_b=None)


def _line(ref: ModelRef, places: Mapping[ModelRef, Place]) -> Sequence[ModelRef]:
    line, above = [ref], places[ref].parent
    while above is not None and above not in line:
        line.append(above)
        above = places[above].parent
    return line


def _ref(run: Run) -> ModelRef:
    assert run.registered is not None, "only registered models are compared"
    return ModelRef(name=run.registered.name, version=run.registered.version)


def _compared(a: Mapping[str, str], b: Mapping[str, str]) -> Compared:
    fields = sorted(a.keys() | b.keys())
    different = [Difference(field=name, a=a.get(name), b=b.get(name)) for name in fields if a.get(name) != b.get(name)]
    return Compared(different=tuple(different), equal=len(fields) - len(different))


def _settings(run: Run) -> dict[str, str]:
    """Every field of the request that has a value; those of features are compared by definition."""
    whole = changes_between(None, run.plan.request)
    return {change.field: change.child for change in whole if change.child is not None}


def _of_data(field: str) -> bool:
    return field.partition(".")[0] in _DATA


def _bars(run: Run) -> dict[str, str]:
    assert run.data is not None, "a registered model has its data"
    whole = {"artifact", "warnings", "shared", "normalisation"}
    fields = _json_leaves(run.data, exclude=whole)
    return fields | {
        f"normalisation.{column.column}": f"mean {column.mean:.6g}, deviation {column.deviation:.6g}"
        for column in run.data.normalisation
    }


def _features(config: FeatureConfigVersionInfo) -> dict[str, str]:
    fields = {"semver": config.semver, "hash": config.hash}
    for definition in config.feature_definitions:
        name = f"feature_definitions.{definition.name}"
        words = definition.model_dump_json(exclude={"name"})
        fields[name] = f"{fields[name]}, {words}" if name in fields else words
    return fields


def _json_leaves(model: Model | None, exclude: set[str] | None = None) -> dict[str, str]:
    if model is None:
        return {}
    found = leaves(model.model_dump(mode="json", exclude=exclude))
    return {name: _JSON.dump_json(value).decode() for name, value in found.items() if value is not None}


def _metrics(a: Run, b: Run) -> ComparedMetrics:
    assert a.evaluation is not None, "a registered model has its evaluation"
    assert b.evaluation is not None, "a registered model has its evaluation"
    assert a.data is not None, "a registered model has its data"
    assert b.data is not None, "a registered model has its data"
    left, right = a.evaluation.metrics, b.evaluation.metrics
    names = list(dict.fromkeys((*left, *right)))
    different = [
        MetricDifference(metric=name, a=left.get(name), b=right.get(name), difference=_above(left, right, name))
        for name in names
        if not _same(left.get(name), right.get(name))
    ]
    tests = [(run.bounds.test.start, run.bounds.test.end) for run in (a.data, b.data)]
    same = tests[0] == tests[1] and _market(a) == _market(b)
    return ComparedMetrics(different=tuple(different), equal=len(names) - len(different), same_test_bars=same)


def _market(run: Run) -> tuple[str, str]:
    return run.symbol, run.timeframe


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-12) or (math.isnan(a) and math.isnan(b))


def _above(a: Mapping[str, float], b: Mapping[str, float], name: str) -> float | None:
    if name not in a or name not in b:
        return None
    difference = b[name] - a[name]
    return difference if math.isfinite(difference) else None
