"""From a request and bars to feature views: which there are, what they are called, and their columns."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import JsonValue

from training_fsm.local.standin.indicators import INDICATORS, ONLY, Bars, FeatureRole, Indicator
from training_fsm.local.standin.wire import FeatureDefinition, Timeframe


class InvalidFeatureError(ValueError):
    """A feature that is unknown, or whose parameters are."""


@dataclass(frozen=True)
class ComputedView:
    """One feature view with its rows.

    `rows` is indexed by the bar's opening (UTC) and has one float64 column per field; indicators start with NaN.
    """

    name: str
    role: FeatureRole
    symbol: str
    timeframe: Timeframe
    rows: pd.DataFrame


@dataclass(frozen=True)
class _Selection:
    """A feature with one of its parameter sets, checked; `None` stands for no set at all."""

    feature: str
    indicator: Indicator
    parameters: Mapping[str, float]
    parameter_set: Mapping[str, JsonValue] | None

    @property
    def stem(self) -> str:
        """The view's name without symbol and timeframe: `rsi_14_d96c…`, or the feature's name where there is no set."""
        if self.parameter_set is None:
            return self.feature
        # The family's digest: over the set as it was sent, keys sorted, Python's default separators.
        digest = hashlib.md5(json.dumps(self.parameter_set, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
        return "_".join([self.feature, *(f"{value:g}" for value in self.parameters.values()), digest])

    def fields(self, bars: Bars) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
        """Compute the columns, under their fields' names."""
        columns = self.indicator.compute(bars, self.parameters)
        return {self.stem if sub == ONLY else f"{self.stem}_{sub}": column for sub, column in columns.items()}


def _selections(definition: FeatureDefinition) -> Iterator[_Selection]:
    indicator = INDICATORS.get(definition.name)
    if indicator is None:
        raise InvalidFeatureError(f"unknown feature, expected one of {', '.join(sorted(INDICATORS))}")
    if not definition.raw_parameter_sets:
        yield _Selection(definition.name, indicator, indicator.parameters({}), None)
    for parameter_set in definition.raw_parameter_sets:
        if parameter_set.get("enabled", True):
            try:
                parameters = indicator.parameters(parameter_set)
            except ValueError as error:
                raise InvalidFeatureError(str(error)) from error
            yield _Selection(definition.name, indicator, parameters, parameter_set)


def validation_errors(definitions: list[FeatureDefinition]) -> dict[str, str]:
    """Say per feature's name why it cannot be computed; empty when all can."""
    errors = {}
    for definition in definitions:
        try:
            list(_selections(definition))
        except InvalidFeatureError as error:
            errors[definition.name] = str(error)
    return errors


def compute_views(
    definitions: list[FeatureDefinition], bars: pd.DataFrame, symbol: str, timeframe: Timeframe
) -> list[ComputedView]:
    """Compute every definition over all bars, one view per feature and parameter set.

    Raises InvalidFeatureError for a feature that `validation_errors` names.
    """
    arrays = Bars(*(bars[price].to_numpy(dtype=np.float64) for price in ("open", "high", "low", "close")))
    return [
        ComputedView(
            name=f"{selection.stem}_{symbol}_{timeframe}",
            role=selection.indicator.role,
            symbol=symbol,
            timeframe=timeframe,
            rows=pd.DataFrame(selection.fields(arrays), index=bars.index),
        )
        for definition in definitions
        for selection in _selections(definition)
    ]
