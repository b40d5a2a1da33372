"""Bars as plain arrays: what the agent sees, what it trades at, and what a reward may need besides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import ColumnNormalisation, Failure
from training_fsm.domain.request import PriceColumns

TIME_COLUMN = "event_timestamp"
OBSERVATION_BOUND = 10.0
"""Every number in an observation is clipped at plus and minus this."""


@dataclass(frozen=True, slots=True, eq=False)
class MarketData:
    """One part of a frame, ready for environments; build it once and share it among them.

    Prices are lists of floats because a step reads single numbers, which arrays hand out slowly.
    """

    observation_columns: tuple[str, ...]
    observations: NDArray[np.float32]
    """Rows x observation columns, normalised and clipped, contiguous."""
    close: list[float]
    open: list[float] | None
    atr: list[float] | None
    day: list[int]
    """Days since 1970-01-01, UTC, of each bar's opening; empty where the frame has no times."""
    times: NDArray[np.datetime64]
    """Bar openings, UTC, in microseconds; empty where the frame has no times."""
    columns: Mapping[str, NDArray[np.float64]]
    """Every other numeric column, by name, as it came: for rewards of your own."""

    def __len__(self) -> int:
        return len(self.close)


def normalise(values: ArrayLike, mean: ArrayLike, deviation: ArrayLike) -> NDArray[np.float32]:
    """(values - mean) / deviation in float64, clipped, as float32; a deviation of 0 counts as 1."""
    spread = np.asarray(deviation, dtype=np.float64)
    scaled = (np.asarray(values, dtype=np.float64) - np.asarray(mean, dtype=np.float64)) / np.where(
        spread == 0.0, 1.0, spread
    )
    return np.ascontiguousarray(np.clip(scaled, -OBSERVATION_BOUND, OBSERVATION_BOUND), dtype=np.float32)


def normalisation_of(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[ColumnNormalisation, ...]:
    """Mean and population deviation of each column, in float64; a constant column gets deviation 1.

    Raises DataUnusable where a column is missing or not finite.
    """
    values = ((column, _numbers(frame, column)) for column in columns)
    return tuple(
        ColumnNormalisation(
            column=column,
            mean=float(numbers.mean()),
            deviation=1.0 if numbers.min() == numbers.max() else float(numbers.std()),
        )
        for column, numbers in values
    )


def default_price_columns(frame: pd.DataFrame) -> PriceColumns:
    """The columns that are called `close`, `open`, `high`, `low` and `atr`, where they are there."""
    there = {name: name for name in ("open", "high", "low", "atr") if name in frame.columns}
    return PriceColumns(close="close", **there)


def default_observation_columns(
    frame: pd.DataFrame, prices: PriceColumns, context_columns: Sequence[str] | None
) -> tuple[str, ...]:
    """Numeric columns that are neither prices, time, nor named as context, in the frame's order."""
    hidden = {TIME_COLUMN, *prices.model_dump().values(), *(context_columns or ())}
    numeric = frame.select_dtypes("number").columns
    return tuple(str(column) for column in numeric if column not in hidden)


def market_data(
    frame: pd.DataFrame,
    prices: PriceColumns,
    observation_columns: Sequence[str],
    normalisation: Sequence[ColumnNormalisation] = (),
) -> MarketData:
    """Prepare the rows of a frame; columns without a normalisation are only clipped.

    Raises DataUnusable where a column is missing or holds something that is not a finite number, or a price is not
    above zero.
    """
    statistics = {entry.column: entry for entry in normalisation}
    observations = np.zeros((len(frame), len(observation_columns)), dtype=np.float32)
    for index, column in enumerate(observation_columns):
        entry = statistics.get(column)
        mean, deviation = (entry.mean, entry.deviation) if entry is not None else (0.0, 1.0)
        observations[:, index] = normalise(_numbers(frame, column), mean, deviation)
    times = _times(frame)
    taken = {TIME_COLUMN, *observation_columns}
    return MarketData(
        observation_columns=tuple(observation_columns),
        observations=observations,
        close=_prices(frame, prices.close).tolist(),
        open=None if prices.open is None else _prices(frame, prices.open).tolist(),
        atr=None if prices.atr is None else _numbers(frame, prices.atr).tolist(),
        day=times.astype("datetime64[D]").astype(np.int64).tolist(),
        times=times,
        columns={
            str(column): frame[column].to_numpy(dtype=np.float64)
            for column in frame.select_dtypes("number").columns
            if column not in taken
        },
    )


def _times(frame: pd.DataFrame) -> NDArray[np.datetime64]:
    if TIME_COLUMN not in frame.columns:
        return np.empty(0, dtype="datetime64[us]")
    utc = pd.to_datetime(frame[TIME_COLUMN], utc=True).dt.tz_convert(None)
    return utc.to_numpy(dtype="datetime64[us]")


def _numbers(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    if column not in frame.columns:
        raise _unusable(column, f"column {column!r} is not in the frame")
    values = frame[column].to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise _unusable(column, f"column {column!r} has {bad.size} rows that are not finite, the first is row {bad[0]}")
    return values


def _prices(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    values = _numbers(frame, column)
    bad = np.flatnonzero(values <= 0)
    if bad.size:
        raise _unusable(column, f"price {column!r} must be above 0, row {bad[0]} has {values[bad[0]]:g}")
    return values


def _unusable(column: str, words: str) -> DataUnusable:
    return DataUnusable(Failure(kind="data_unusable", words=words, field=column))
