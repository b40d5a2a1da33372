"""What must hold of rows before a run trains on them, and what is worth a warning."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd

from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import Failure, Gaps, SharedRows, SplitBounds
from training_fsm.domain.request import PriceColumns
from training_fsm.domain.timeframe import Timeframe

TIME = "event_timestamp"
TEST_BARS_ADVISED = 252


def unusable(words: str, field: str | None = None, time: pd.Timestamp | None = None) -> DataUnusable:
    """The error for rows that are there and cannot be trained on."""
    when = None if time is None else time.isoformat()
    return DataUnusable(Failure(kind="data_unusable", words=words, field=field, range=when))


def merge_duplicates(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep one of several equal rows of a bar; the order of rows stays.

    Raises DataUnusable, with column and time, where two rows of a bar differ.
    """
    repeated = frame[TIME].duplicated(keep=False)
    if not repeated.any():
        return frame
    different = frame[repeated].drop_duplicates()
    clashing = different[different[TIME].duplicated(keep=False)]
    if not clashing.empty:
        time = clashing[TIME].iloc[0]
        rows = clashing[clashing[TIME] == time]
        column = next(name for name in rows.columns if name != TIME and rows[name].nunique(dropna=False) > 1)
        values = ", ".join(f"{value:g}" for value in rows[column])
        raise unusable(f"{column}: {len(rows)} different rows at {time.isoformat()}: {values}", column, time)
    return frame[~frame[TIME].duplicated()]


def warmup_rows(frame: pd.DataFrame) -> int:
    """How many rows at the start have a NaN, as indicators do until their window is full.

    Raises DataUnusable, with column and time, for a NaN or infinity after them and for a column without any value.
    """
    names = [name for name in frame.columns if name != TIME]
    values = frame[names].to_numpy()
    missing = np.isnan(values)
    first_values = np.where(missing.all(axis=0), len(frame), np.argmin(missing, axis=0))
    warmup = int(first_values.max())
    if warmup == len(frame):
        column = names[int(first_values.argmax())]
        raise unusable(f"{column}: none of the {len(frame)} rows has a value", column)
    bad_rows, bad_columns = np.nonzero(~np.isfinite(values[warmup:]))
    if len(bad_rows):
        time, column = frame[TIME].iloc[warmup + int(bad_rows[0])], names[int(bad_columns[0])]
        value = values[warmup + int(bad_rows[0]), int(bad_columns[0])]
        raise unusable(
            f"{column}: {value} at {time.isoformat()}, after the {warmup} leading rows in which "
            "indicators may have no value yet; expected a number",
            column,
            time,
        )
    return warmup


def gaps(times: pd.Series, timeframe: Timeframe, max_gap_bars: int | None) -> Gaps:
    """Count the steps longer than the timeframe, in whole bars of it, and find the longest.

    Raises DataUnusable where one is longer than `max_gap_bars`, and where two bars are at most half a timeframe apart:
    then rows of another timeframe lie among these (clock changes shift a bar by an hour at most).
    """
    bar = pd.Timedelta(minutes=timeframe.minutes)
    steps = times.diff().to_numpy()[1:]
    if not len(steps):
        return Gaps(count=0, longest_bars=0, longest_after=None)
    shortest = int(steps.argmin())
    if steps[shortest] <= bar.to_timedelta64() / 2:
        raise unusable(
            f"{TIME}: bars at {times.iloc[shortest].isoformat()} and {times.iloc[shortest + 1].isoformat()}, "
            f"expected about {timeframe.value} between two; are rows of another timeframe among them?",
            TIME,
            times.iloc[shortest],
        )
    bars = np.rint(steps / bar.to_timedelta64()).astype(np.int64)
    longest = int(bars.argmax())
    if bars[longest] <= 1:
        return Gaps(count=0, longest_bars=0, longest_after=None)
    after = times.iloc[longest]
    if max_gap_bars is not None and bars[longest] > max_gap_bars:
        raise unusable(
            f"{TIME}: {bars[longest]} bars from {after.isoformat()} to the next one, "
            f"expected at most data.max_gap_bars = {max_gap_bars}",
            TIME,
            after,
        )
    return Gaps(count=int((bars > 1).sum()), longest_bars=int(bars[longest]), longest_after=after.to_pydatetime())


def check_prices(frame: pd.DataFrame, columns: PriceColumns) -> None:
    """Raise DataUnusable, with column and time, for a price that is not above zero or an ATR below zero."""
    for use in ("open", "high", "low", "close", "atr"):
        column = getattr(columns, use)
        if column is None:
            continue
        bad = frame[column] < 0 if use == "atr" else frame[column] <= 0
        if bad.any():
            row = int(bad.to_numpy().argmax())
            time = frame[TIME].iloc[row]
            raise unusable(
                f"{column}: {frame[column].iloc[row]:g} at {time.isoformat()}, "
                f"expected {'at least' if use == 'atr' else 'more than'} 0 of data.columns.{use}",
                column,
                time,
            )


def check_part_lengths(bounds: SplitBounds, least_bars: int) -> None:
    """Raise DataUnusable where a part of the split has fewer bars than an episode needs."""
    for name, part in (("training", bounds.training), ("validation", bounds.validation), ("test", bounds.test)):
        if part.last - part.first < least_bars:
            raise unusable(
                f"split: the {name} part has {part.last - part.first} bars, "
                f"expected at least {least_bars}, the window of an observation and two bars to act on",
                "split",
            )


def check_untrained(times: pd.Series, bounds: SplitBounds, trained_until: datetime, embargo_bars: int) -> None:
    """Raise DataUnusable where the test part begins before the embargo behind the last bar that was trained on ends."""
    behind = int(times.searchsorted(pd.Timestamp(trained_until), side="right")) + embargo_bars
    if bounds.test.first < behind:
        earliest = f"from {times.iloc[behind].isoformat()} on" if behind < len(times) else "after the last bar there is"
        raise unusable(
            f"split: the test part begins at {bounds.test.start.isoformat()}, but the parent or an ancestor was "
            f"trained on bars up to {trained_until.isoformat()}; with embargo_bars = {embargo_bars} it may begin "
            f"{earliest}",
            "split",
            pd.Timestamp(bounds.test.start),
        )


def drift_warnings(shared: SharedRows | None) -> tuple[str, ...]:
    """What should be known of bars that the parent was trained on too: that they differ, or could not be compared."""
    if shared is None:
        return ()
    if shared.found_digest is None:
        return (
            f"the feature store has none of the {shared.rows} bars from {shared.start.isoformat()} to "
            f"{shared.end.isoformat()} any more: the parent's rows are used and nothing was compared",
        )
    if shared.first_difference is not None:
        return (
            f"{shared.rows_different} of {shared.rows} shared bars differ in the feature store, first "
            f"{shared.first_difference.column} at {shared.first_difference.time.isoformat()}: "
            "the drift was accepted, the parent's rows are used",
        )
    return ()


def warnings(frame: pd.DataFrame, names: Sequence[str], bounds: SplitBounds, warmup: int) -> tuple[str, ...]:
    """What does not stop a run and should be known: constant columns, a long warm-up, a short test part."""
    training = frame.iloc[bounds.training.first : bounds.training.last]
    found = [f"{name}: constant in the training part" for name in names if training[name].nunique() == 1]
    if warmup > (len(frame) + warmup) / 10:
        found.append(f"{warmup} of {len(frame) + warmup} rows are dropped, some indicator has no value there")
    test_bars = bounds.test.last - bounds.test.first
    if test_bars < TEST_BARS_ADVISED:
        found.append(f"the test part has {test_bars} bars, fewer than {TEST_BARS_ADVISED}: its metrics say little")
    return tuple(found)
