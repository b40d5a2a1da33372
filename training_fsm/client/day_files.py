"""Rows from local parquet files, as the family lays them: one small file per day.

Feast's own reader makes a partition of each file and sorts across them: more than a second for the 260 files of a year,
for each view. Read one after the other they take 20 ms (benchmarks/feast_fetch.py).
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
    whole = pa.py_buffer(Path(path).read_bytes())
    try:
        # Handing a few rows to threads takes three times as long as reading them.
        table = pq.ParquetFile(whole).read(columns=list(columns), use_threads=False)
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"{path}: {error}") from error
    # What pandas may have left in the schema would make an index of a column.
    return table.replace_schema_metadata(None)
