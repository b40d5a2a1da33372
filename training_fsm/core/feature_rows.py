"""Feature rows as they come from the feature store, before they are checked and frozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import pandas as pd

from training_fsm.core.data_checks import TIME, merge_duplicates
from training_fsm.domain.errors import FeaturesMissing
from training_fsm.domain.facts import Failure
from training_fsm.domain.timeframe import Timeframe, TimeRange

UNMATCHED_MAX_FRACTION = 0.01
_CLOSURE_DAYS_MAX = 5


@dataclass(frozen=True, slots=True)
class ViewRows:
    """The rows of one feature view: `event_timestamp` (UTC, microseconds) and one float64 column per field."""

    view: str
    frame: pd.DataFrame


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """All fields of a run side by side, one symbol, one row per bar, sorted.

    `frame` has `event_timestamp` (bar opening, UTC), then the observation columns, then the reward columns, float64.
    """

    frame: pd.DataFrame
    observation_columns: tuple[str, ...]
    reward_columns: tuple[str, ...]
    service: str


def join_views(views: Sequence[ViewRows], service: str) -> pd.DataFrame:
    """Join views on the bars that all of them have; the result is sorted by time.

    Raises FeaturesMissing where more than 1 % of all bars lack in some view, DataUnusable where one view
    has two different rows for a bar.
    """
    frames = [merge_duplicates(view.frame).set_index(TIME) for view in views]
    joined = pd.concat(frames, axis="columns", join="inner").sort_index()
    every_bar = reduce(pd.DatetimeIndex.union, (pd.DatetimeIndex(frame.index) for frame in frames))
    unmatched = len(every_bar) - len(joined)
    if unmatched > UNMATCHED_MAX_FRACTION * len(every_bar):
        shortest = min(range(len(frames)), key=lambda number: len(frames[number]))
        lacking = every_bar.difference(pd.DatetimeIndex(frames[shortest].index))
        raise FeaturesMissing(
            Failure(
                kind="features_missing",
                words=f"feature service {service}: {unmatched} of {len(every_bar)} bars are not in all of its views, "
                f"expected at most 1 %; view {views[shortest].view} lacks most, {len(lacking)}",
                service=service,
                field=", ".join(frames[shortest].columns),
                range=f"{lacking[0].isoformat()} to {lacking[-1].isoformat()}",
            )
        )
    return joined.reset_index(names=TIME)


def check_coverage(views: Sequence[ViewRows], asked: TimeRange, timeframe: Timeframe, service: str) -> None:
    """Refuse rows that do not reach from one end of the asked range to the other.

    Either end may lack one bar, since a bar opens anywhere in the first bar length and the last one may still be
    open, plus 5 days: the longest regular closure of a market (24 to 28 December, Good Friday to Easter Monday) is that
    long. So a week missing at an end of a 4h range is noticed, and a month at an end of a weekly one.
    Raises FeaturesMissing with the bars that are there and the range that was asked.
    """
    times = pd.concat([view.frame[TIME] for view in views])
    bar = pd.Timedelta(minutes=timeframe.minutes)
    tolerance = bar + pd.Timedelta(days=_CLOSURE_DAYS_MAX)
    range_words = f"{asked.start.isoformat()} to {asked.end.isoformat()}"
    if times.empty:
        raise FeaturesMissing(
            Failure(
                kind="features_missing",
                words=f"feature service {service} has no rows from {range_words}",
                service=service,
                range=range_words,
            )
        )
    first, last = times.min(), times.max()
    lacking = []
    if first - pd.Timestamp(asked.start) > tolerance:
        lacking.append(f"{asked.start.isoformat()} to {first.isoformat()}")
    if pd.Timestamp(asked.end) - bar - last > tolerance:
        lacking.append(f"{(last + bar).isoformat()} to {asked.end.isoformat()}")
    if lacking:
        raise FeaturesMissing(
            Failure(
                kind="features_missing",
                words=f"feature service {service} has bars from {first.isoformat()} to {last.isoformat()}, "
                f"expected from {range_words}",
                service=service,
                range="; ".join(lacking),
            )
        )
