"""A run's rows, checked and stored by content: training, evaluation and audit read this, never the feature store again.

The digest is sha256 over the columns in order: `event_timestamp`, then observation, then reward columns. Each column
adds the length of its name in UTF-8 (4 bytes, little-endian), the name, its dtype (`<i8`: microseconds since 1970, or
`<f4`), the number of rows (8 bytes, little-endian) and its values as those bytes. How the file encodes them is all one.
"""

import hashlib
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from training_fsm.core.data_checks import (
    TIME,
    check_part_lengths,
    check_prices,
    check_untrained,
    drift_warnings,
    gaps,
    merge_duplicates,
    unusable,
    warmup_rows,
    warnings,
)
from training_fsm.core.feature_rows import FeatureRows
from training_fsm.core.market_data import normalisation_of
from training_fsm.core.split_bounds import split_bounds
from training_fsm.domain.errors import ArtifactDamaged
from training_fsm.domain.facts import ColumnNormalisation, Failure, FrozenData, SharedRows
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange

_YEAR = pd.Timedelta(days=365.25)


def freeze(
    rows: FeatureRows,
    request: TrainingRequest,
    folder: Path,
    *,
    normalisation: Sequence[ColumnNormalisation] | None = None,
    shared: SharedRows | None = None,
    not_before: datetime | None = None,
) -> tuple[Path, FrozenData]:
    """Check rows and write them to `folder` as `data-<digest>.parquet`, values as float32, sorted, one row per bar.

    A continued run inherits its parent's `normalisation`, says what it found of the bars that are `shared`, and is not
    judged on what an ancestor was trained on: its test part must begin behind the bar that opens at `not_before`, the
    last of them, plus the embargo.

    Returns the file and what is known of it. Raises DataUnusable, with column and time, for everything that must not be
    trained on; ValueError for a normalisation of other columns.
    """
    if normalisation is not None and tuple(entry.column for entry in normalisation) != rows.observation_columns:
        named = ", ".join(entry.column for entry in normalisation)
        raise ValueError(f"normalisation: expected {', '.join(rows.observation_columns)}, got {named}")
    names = [*rows.observation_columns, *rows.reward_columns]
    frame = merge_duplicates(rows.frame[[TIME, *names]]).sort_values(TIME, ignore_index=True)
    if frame.empty:
        raise unusable("there are no rows")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is told below
        frame = frame.astype({TIME: "datetime64[us, UTC]", **dict.fromkeys(names, np.float32)})
    warmup = warmup_rows(frame)
    per_year = periods_per_year(len(frame), request.range)
    frame = frame.iloc[warmup:].reset_index(drop=True)
    holes = gaps(frame[TIME], request.timeframe, request.data.max_gap_bars)
    check_prices(frame, request.data.columns)
    bounds = split_bounds(pd.DatetimeIndex(frame[TIME]), request.split, request.embargo_bars)
    check_part_lengths(bounds, request.env.window + 2)
    if not_before is not None:
        check_untrained(frame[TIME], bounds, not_before, request.embargo_bars)
    digest = frame_digest(frame)
    frozen = FrozenData(
        digest=digest,
        rows=len(frame),
        warmup_rows=warmup,
        gaps=holes,
        periods_per_year=per_year,
        observation_columns=rows.observation_columns,
        bounds=bounds,
        normalisation=normalisation_of(
            frame.iloc[bounds.training.first : bounds.training.last], rows.observation_columns
        )
        if normalisation is None
        else tuple(normalisation),
        warnings=(*warnings(frame, names, bounds, warmup), *drift_warnings(shared)),
        shared=shared,
    )
    return _write(frame, folder / f"data-{digest[:16]}.parquet"), frozen


def load_frozen(path: Path, frozen: FrozenData) -> pd.DataFrame:
    """Read a frozen frame: `event_timestamp` (UTC), then float32 columns, in the order they were frozen in.

    Raises ArtifactDamaged where the file cannot be read or its digest is not the one that was frozen.
    """
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
        found = frame_digest(frame)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        words = f"frozen data {path.name}: expected digest {frozen.digest}, got {type(error).__name__}: {error}"
        raise _damaged(words) from error
    if found != frozen.digest:
        raise _damaged(f"frozen data {path.name}: expected digest {frozen.digest}, got {found}")
    return frame


def frame_digest(frame: pd.DataFrame) -> str:
    """The digest of a frame of `event_timestamp` and float32 columns, as the module says."""
    whole = hashlib.sha256()
    for name in frame.columns:
        if name == TIME:
            values = frame[name].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").astype("<i8")
        elif frame[name].dtype == np.float32:
            values = frame[name].to_numpy("<f4")
        else:
            raise TypeError(f"{name}: expected float32, got {frame[name].dtype}")
        encoded = name.encode()
        whole.update(len(encoded).to_bytes(4, "little") + encoded + values.dtype.str.encode())
        whole.update(len(values).to_bytes(8, "little"))
        whole.update(np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()


def periods_per_year(bars: int, asked: TimeRange) -> float:
    """Bars in a calendar year: bars / (end - start of the asked range in years of 365.25 days), rounded to whole bars.

    The range counts from end to end, nights, weekends and holidays included: 1,560 for EURUSD 4h, 252 for S&P 500 1d.
    Below one bar a year it is not rounded.
    """
    exact = bars / ((asked.end - asked.start) / _YEAR)
    return float(round(exact)) if exact >= 1 else exact


def _write(frame: pd.DataFrame, path: Path) -> Path:
    """Under a name of its own first, so that a crash leaves no half file under the right name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None), file)
        file.flush()
        os.fsync(file.fileno())
    return unfinished.replace(path)


def _damaged(words: str) -> ArtifactDamaged:
    return ArtifactDamaged(Failure(kind="artifact_damaged", words=words))
