"""A run's rows, checked and stored by content: training, evaluation and audit read this, never the feature store again.

The digest is sha256 over the columns in order: `event_timestamp`, then observation, then reward columns. Each column
adds the length of its name in UTF-8 (4 bytes, little-endian), the name, its dtype (`<i8`: microseconds since 1970, or
`<f4`), the number of rows (8 bytes, little-endian) and its values as those bytes. How the file encodes them is all one.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from training_fsm.core.data_checks import (
    TIME,
    check_part_lengths,
    check_prices,
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
from training_fsm.domain.events import DataFrozen
from training_fsm.domain.facts import Artifact, ColumnNormalisation, Failure, Gaps, SplitBounds
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange

_YEAR = pd.Timedelta(days=365.25)


@dataclass(frozen=True, slots=True)
class FrozenFrame:
    """A frozen frame in a local file and all that DataFrozen says of it but the artifact."""

    path: Path
    digest: str
    rows: int
    warmup_rows: int
    gaps: Gaps
    periods_per_year: float
    observation_columns: tuple[str, ...]
    bounds: SplitBounds
    normalisation: tuple[ColumnNormalisation, ...]
    warnings: tuple[str, ...]

    def stored(self, artifact: Artifact) -> DataFrozen:
        """The event, once the file is stored as `artifact`."""
        return DataFrozen(
            artifact=artifact,
            digest=self.digest,
            rows=self.rows,
            warmup_rows=self.warmup_rows,
            gaps=self.gaps,
            periods_per_year=self.periods_per_year,
            observation_columns=self.observation_columns,
            bounds=self.bounds,
            normalisation=self.normalisation,
            warnings=self.warnings,
        )


def freeze(rows: FeatureRows, request: TrainingRequest, folder: Path) -> FrozenFrame:
    """Check rows and write them to `folder` as `data-<digest>.parquet`, values as float32, sorted, one row per bar.

    Raises DataUnusable, with column and time, for everything that must not be trained on.
    """
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
    digest = frame_digest(frame)
    return FrozenFrame(
        path=_write(frame, folder / f"data-{digest[:16]}.parquet"),
        digest=digest,
        rows=len(frame),
        warmup_rows=warmup,
        gaps=holes,
        periods_per_year=per_year,
        observation_columns=rows.observation_columns,
        bounds=bounds,
        normalisation=normalisation_of(
            frame.iloc[bounds.training.first : bounds.training.last], rows.observation_columns
        ),
        warnings=warnings(frame, names, bounds, warmup),
    )


def load_frozen(path: Path, frozen: DataFrozen) -> pd.DataFrame:
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
