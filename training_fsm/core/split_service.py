"""Training, validation and test parts of a frame, in time order, with bars left out between them."""

from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from training_fsm.core.market_data import TIME_COLUMN
from training_fsm.core.split_bounds import split_bounds
from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import Failure, PartBounds
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
        """Split by fractions of the bars that remain without the two embargoes; the ratios sum to 1.

        A column `event_timestamp` must ascend; without one the rows' order is the time's. Raises DataUnusable where
        it does not or a part has no bar, ValueError where the ratios do not sum to 1 or the embargo is negative.
        """
        settings = SplitSettings(
            training=training_ratio, validation=validation_ratio, test=testing_ratio, embargo_bars=embargo_bars
        )
        return _split(df, settings, embargo_bars)

    def split_dataset_by_dates(
        self, df: pd.DataFrame, train_until: datetime, validation_until: datetime, embargo_bars: int = 1
    ) -> SplitDatasets:
        """Split at the first bar opening that is no longer training, and the first that is no longer validation.

        Raises as `split_dataset` does, and DataUnusable without a column `event_timestamp`.
        """
        if TIME_COLUMN not in df.columns:
            raise _unusable(f"column {TIME_COLUMN!r} is not in the frame")
        settings = SplitSettings(train_until=train_until, validation_until=validation_until, embargo_bars=embargo_bars)
        return _split(df, settings, embargo_bars)


def _split(df: pd.DataFrame, settings: SplitSettings, embargo_bars: int) -> SplitDatasets:
    bounds = split_bounds(_times(df), settings, embargo_bars)
    return SplitDatasets(_rows(df, bounds.training), _rows(df, bounds.validation), _rows(df, bounds.test))


def _rows(df: pd.DataFrame, part: PartBounds) -> pd.DataFrame:
    return df.iloc[part.first : part.last].reset_index(drop=True)


def _times(df: pd.DataFrame) -> pd.DatetimeIndex:
    if TIME_COLUMN not in df.columns:
        # bars without times are only counted
        return pd.date_range("1970-01-01", periods=len(df), freq="min", tz="UTC")
    times = pd.DatetimeIndex(pd.to_datetime(df[TIME_COLUMN], utc=True))
    if not times.is_monotonic_increasing or not times.is_unique:
        raise _unusable(f"column {TIME_COLUMN!r} must ascend, one row for each time")
    return times


def _unusable(words: str) -> DataUnusable:
    return DataUnusable(Failure(kind="data_unusable", words=words, field=TIME_COLUMN))
