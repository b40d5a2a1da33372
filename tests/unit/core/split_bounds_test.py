import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_fsm.core.split_bounds import split_bounds
from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import SplitBounds
from training_fsm.domain.request import SplitSettings


def days(count: int) -> pd.DatetimeIndex:
    """Daily bars from 2017 on."""
    return pd.date_range("2017-01-01", periods=count, freq="D", tz="UTC")


def cuts(bounds: SplitBounds) -> list[int]:
    """First and last of the three parts."""
    parts = (bounds.training, bounds.validation, bounds.test)
    return [row for part in parts for row in (part.first, part.last)]


def test_fractions_are_of_the_bars_without_the_embargoes() -> None:
    """104 bars with two embargoes of 2 leave 100 to share."""
    bounds = split_bounds(days(104), SplitSettings(), embargo_bars=2)
    assert cuts(bounds) == [0, 80, 82, 92, 94, 104]
    assert bounds.validation.start.isoformat() == "2017-03-24T00:00:00+00:00"
    assert bounds.validation.end.isoformat() == "2017-04-02T00:00:00+00:00"


def test_inexact_fractions_lose_no_bar() -> None:
    """0.7 + 0.1 is a hair below 0.8 in floating point; ten bars are still 7, 1 and 2."""
    assert cuts(split_bounds(days(10), SplitSettings(training=0.7, validation=0.1, test=0.2), 0)) == [0, 7, 7, 8, 8, 10]


def test_dates_are_the_first_bars_of_the_next_part() -> None:
    """A date is where the earlier part ends; the embargo is cut from the later one."""
    dates = SplitSettings.model_validate({"train_until": "2017-02-01", "validation_until": "2017-02-11"})
    assert cuts(split_bounds(days(60), dates, embargo_bars=3)) == [0, 31, 34, 41, 44, 60]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"train_until": "2016-01-01", "validation_until": "2017-01-11"}, "training"),
        ({"train_until": "2017-01-10", "validation_until": "2017-01-11"}, "validation"),
        ({"train_until": "2017-01-10", "validation_until": "2018-01-01"}, "test"),
        ({}, "validation"),
    ],
)
def test_empty_part_is_named(settings: dict[str, str], part: str) -> None:
    """A part that no bar falls into is an error that says which and why."""
    with pytest.raises(DataUnusable, match=f"the {part} part has no bar; there are 20 bars and 8 are left out"):
        split_bounds(days(20), SplitSettings.model_validate(settings), embargo_bars=8)


@given(st.integers(30, 3000), st.integers(0, 5), st.floats(0.2, 0.6), st.floats(0.1, 0.3))
def test_parts_are_ordered_apart_and_whole(count: int, embargo: int, training: float, validation: float) -> None:
    """Whatever the fractions, the parts cover all bars but exactly two embargoes, in time order."""
    settings = SplitSettings(training=training, validation=validation, test=1 - training - validation)
    bounds = split_bounds(days(count), settings, embargo)
    first, train_end, validation_first, validation_end, test_first, last = cuts(bounds)
    assert (first, last) == (0, count)
    assert validation_first - train_end == test_first - validation_end == embargo
    assert first < train_end <= validation_first < validation_end <= test_first < last
