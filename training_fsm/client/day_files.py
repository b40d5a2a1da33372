"""Rows from local parquet files, as the family lays them: one small file per day.

Feast's own reader makes a partition of each file and sorts across them: 1.0 s for the 260 files of a year, five
times that for five views. Read one after the other they take 25 ms a view.
"""

import glob
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]


def read_day_files(pattern: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read columns from a parquet file, a folder of them, or all that match a glob pattern, in the order of paths.

    A column that some files lack is null there, one that all lack is not in the result. No file: no rows, all columns.
    """
    tables = [_read(path, columns) for path in _files(pattern)]
    if not tables:
        return pd.DataFrame(columns=list(columns))
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    return frame


def _files(pattern: Path) -> list[str]:
    if pattern.is_dir():
        pattern = pattern / "**" / "*.parquet"
    return sorted(glob.glob(str(pattern), recursive=True))


def _read(path: str, columns: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        # The schema that pandas may have left in the file would make an index of a column.
        return file.read(columns=list(columns)).replace_schema_metadata(None)
