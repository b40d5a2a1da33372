"""Training, validation and test parts in time order, with bars left out between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from training_fsm.core.market_data import TIME_COLUMN
from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import Failure, PartBounds, SplitBounds
from training_fsm.domain.request import SplitSettings


@dataclass(frozen=True, slots=True, eq=False)
class SplitDatasets:
    """The three parts of a frame; the rows between them are in none."""

    training_data: pd.DataFrame
    validation_data: pd.DataFrame
    test_data: pd.DataFrame


class SplitService:
    """Splits a frame of bars by fractions or by dates."""

    def split_dataset(
        self,
        df: pd.DataFrame,
        training_ratio: float = 0.8,
        validation_ratio: float = 0.1,
        testing_ratio: float = 0.1,
        embargo_bars: int = 1,
    ) -> SplitDatasets:
        """Split by fractions of the rows, which are in time order; the ratios sum to 1.

        Validation and test give up their first `embargo_bars` rows. Raises DataUnusable where a part has no two rows
        or the time runs backwards, pydantic.ValidationError (a ValueError) on ratios that do not sum to 1.
        """
        settings = SplitSettings(training=training_ratio, validation=validation_ratio, test=testing_ratio)
        _check_order(df)
        return _parts(df, _by_fractions(len(df), settings, embargo_bars), embargo_bars)

    def split_dataset_by_dates(
        self, df: pd.DataFrame, train_until: datetime, validation_until: datetime, embargo_bars: int = 1
    ) -> SplitDatasets:
        """Split at the first bar opening that is no longer training, and the first that is no longer validation.

        Needs the column `event_timestamp`. Raises as `split_dataset` does.
        """
        settings = SplitSettings(train_until=train_until, validation_until=validation_until)
        _check_order(df)
        return _parts(df, _rows(_times(df), settings, embargo_bars), embargo_bars)


def split_bounds(times: pd.Series, settings: SplitSettings, embargo_bars: int, min_bars: int = 2) -> SplitBounds:
    """The bounds of the three parts of a frame with these bar openings (UTC, ascending), as DataFrozen holds them.

    Raises DataUnusable where a part has fewer than `min_bars` rows.
    """
    utc = pd.to_datetime(times, utc=True).reset_index(drop=True)
    rows = _rows(utc, settings, embargo_bars)
    _check_length(rows, min_bars, embargo_bars)
    training, validation, test = (
        PartBounds(
            first=part.start,
            last=part.stop,
            start=utc.iloc[part.start].to_pydatetime(),
            end=utc.iloc[part.stop - 1].to_pydatetime(),
        )
        for part in rows
    )
    return SplitBounds(training=training, validation=validation, test=test)


def _rows(times: pd.Series, settings: SplitSettings, embargo_bars: int) -> tuple[range, range, range]:
    if settings.train_until is None or settings.validation_until is None:
        return _by_fractions(len(times), settings, embargo_bars)
    validation_from = int((times < pd.Timestamp(settings.train_until)).sum())
    test_from = int((times < pd.Timestamp(settings.validation_until)).sum())
    return _ranges(len(times), validation_from, test_from, embargo_bars)


def _by_fractions(rows: int, settings: SplitSettings, embargo_bars: int) -> tuple[range, range, range]:
    validation_from = round(rows * settings.training)
    test_from = round(rows * (settings.training + settings.validation))
    return _ranges(rows, validation_from, test_from, embargo_bars)


def _ranges(rows: int, validation_from: int, test_from: int, embargo_bars: int) -> tuple[range, range, range]:
    if embargo_bars < 0:
        raise ValueError(f"embargo_bars: expected 0 or more, got {embargo_bars}")
    return (
        range(validation_from),
        range(min(validation_from + embargo_bars, test_from), test_from),
        range(min(test_from + embargo_bars, rows), rows),
    )


def _check_length(parts: Sequence[range], min_bars: int, embargo_bars: int) -> None:
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) < min_bars:
            words = (
                f"the {name} part has {len(part)} bars after an embargo of {embargo_bars}, expected at least {min_bars}"
            )
            raise DataUnusable(Failure(kind="data_unusable", words=words, field=f"split.{name}"))


def _parts(df: pd.DataFrame, rows: tuple[range, range, range], embargo_bars: int) -> SplitDatasets:
    _check_length(rows, 2, embargo_bars)
    training, validation, test = (df.iloc[part.start : part.stop].reset_index(drop=True) for part in rows)
    return SplitDatasets(training, validation, test)


def _times(df: pd.DataFrame) -> pd.Series:
    if TIME_COLUMN not in df.columns:
        words = f"column {TIME_COLUMN!r} is not in the frame"
        raise DataUnusable(Failure(kind="data_unusable", words=words, field=TIME_COLUMN))
    return pd.to_datetime(df[TIME_COLUMN], utc=True).reset_index(drop=True)


def _check_order(df: pd.DataFrame) -> None:
    if TIME_COLUMN in df.columns and not _times(df).is_monotonic_increasing:
        words = f"column {TIME_COLUMN!r} must ascend"
        raise DataUnusable(Failure(kind="data_unusable", words=words, field=TIME_COLUMN))
