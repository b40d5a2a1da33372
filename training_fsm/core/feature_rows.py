"""Feature rows as they come from the feature store, before they are checked and frozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce

import numpy as np
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


def join_views(views: Sequence[ViewRows], service: str, demanded: Sequence[TimeRange] | None = None) -> pd.DataFrame:
    """Join views on the bars that all of them have; the result is sorted by time.

    Raises FeaturesMissing where, of the bars in the `demanded` ranges (None: of all), some view lacks more than 1 % of
    all bars, DataUnusable where one view has two different rows for a bar.
    """
    frames = [merge_duplicates(view.frame).set_index(TIME) for view in views]
    joined = pd.concat(frames, axis="columns", join="inner").sort_index()
    every_bar = reduce(pd.DatetimeIndex.union, (pd.DatetimeIndex(frame.index) for frame in frames))
    unmatched = _demanded(every_bar.difference(pd.DatetimeIndex(joined.index)), demanded)
    if len(unmatched) > UNMATCHED_MAX_FRACTION * len(every_bar):
        lacking = [unmatched.difference(pd.DatetimeIndex(frame.index)) for frame in frames]
        worst = max(range(len(frames)), key=lambda number: len(lacking[number]))
        raise FeaturesMissing(
            Failure(
                kind="features_missing",
                words=f"feature service {service}: {len(unmatched)} of {len(every_bar)} bars are not in all of its "
                f"views, expected at most 1 %; view {views[worst].view} lacks most, {len(lacking[worst])}",
                service=service,
                field=", ".join(frames[worst].columns),
                range=f"{lacking[worst][0].isoformat()} to {lacking[worst][-1].isoformat()}",
            )
        )
    return joined.reset_index(names=TIME)


def lacking_ranges(views: Sequence[ViewRows], asked: TimeRange, timeframe: Timeframe) -> tuple[TimeRange, ...]:
    """The parts at the ends of the asked range that the bars of all views together do not reach.

    Either end may lack one bar, since a bar opens anywhere in the first bar length and the last one may still be
    open, plus 5 days: the longest regular closure of a market (24 to 28 December, Good Friday to Easter Monday) is that
    long. So a week missing at an end of a 4h range is noticed, and a month at an end of a weekly one. Without any bar
    all of it lacks.
    """
    times = _bars(views)
    if times.empty:
        return (asked,)
    bar = timedelta(minutes=timeframe.minutes)
    tolerance = bar + timedelta(days=_CLOSURE_DAYS_MAX)
    first, last = times.min().to_pydatetime(), times.max().to_pydatetime()
    lacking = []
    if first - asked.start > tolerance:
        lacking.append(TimeRange(start=asked.start, end=first))
    if asked.end - bar - last > tolerance:
        lacking.append(TimeRange(start=last + bar, end=asked.end))
    return tuple(lacking)


def check_coverage(views: Sequence[ViewRows], asked: TimeRange, timeframe: Timeframe, service: str) -> None:
    """Refuse rows that do not reach from one end of the asked range to the other, as `lacking_ranges` says.

    Raises FeaturesMissing with the bars that are there and the range that was asked.
    """
    lacking = lacking_ranges(views, asked, timeframe)
    if not lacking:
        return
    times = _bars(views)
    where = f"view {views[0].view} of feature service {service}" if len(views) == 1 else f"feature service {service}"
    if times.empty:
        words = f"{where} has no rows from {_words(asked)}"
    else:
        first, last = times.min().isoformat(), times.max().isoformat()
        words = f"{where} has bars from {first} to {last}, expected from {_words(asked)}"
    raise FeaturesMissing(
        Failure(
            kind="features_missing",
            words=words,
            service=service,
            range="; ".join(_words(part) for part in lacking),
        )
    )


def united(ranges: Sequence[TimeRange]) -> tuple[TimeRange, ...]:
    """The same times in time order, without overlaps."""
    result: list[TimeRange] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if result and part.start <= result[-1].end:
            result[-1] = TimeRange(start=result[-1].start, end=max(result[-1].end, part.end))
        else:
            result.append(part)
    return tuple(result)


def within(views: Sequence[ViewRows], part: TimeRange) -> list[ViewRows]:
    """The rows of a part of the range."""
    return [ViewRows(view.view, view.frame[view.frame[TIME].between(part.start, part.end, "left")]) for view in views]


def _demanded(times: pd.DatetimeIndex, demanded: Sequence[TimeRange] | None) -> pd.DatetimeIndex:
    if demanded is None:
        return times
    inside = [(times >= pd.Timestamp(part.start)) & (times < pd.Timestamp(part.end)) for part in demanded]
    return times[np.logical_or.reduce(inside)] if inside else times[:0]


def _bars(views: Sequence[ViewRows]) -> pd.Series:
    times: pd.Series = pd.concat([view.frame[TIME] for view in views])
    return times


def _words(part: TimeRange) -> str:
    return f"{part.start.isoformat()} to {part.end.isoformat()}"
