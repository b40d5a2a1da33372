"""The Feast repository that preprocess fills, in the family's layout.

Rows lie in `{repo}/{symbol}/year=YYYY/month=MM/day=DD/features_{id}.parquet`, one file per view and day of the bar's
opening. Neither path nor columns name a timeframe. What keeps timeframes apart is the view: `id` is a digest of its
name, and its FileSource is the pattern that matches those files only, so pulling a view's rows never mixes two
timeframes or two parameter sets. A file is replaced by rename, whole days at a time: asking for a range again doubles
nothing.

The folder also holds `feature_store.yaml` and the registry (SQL, on SQLite), so any Feast client can open it.
"""

import hashlib
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, String

from training_fsm.local.standin.feature_views import ComputedView
from training_fsm.local.standin.indicators import FeatureRole
from training_fsm.local.standin.wire import FeatureConfigVersionInfo

PROJECT = "drl_trading_preprocess"
JOIN_KEY = "symbol"
TIMESTAMP_FIELD = "event_timestamp"
TTL = timedelta(days=1)


def service_name(view: ComputedView, version: FeatureConfigVersionInfo) -> str:
    """Name the service that holds a view: the only role that the family gives a service is `observation_space`."""
    timeframe = view.timeframe.replace("-", "_")
    return f"{FeatureRole.OBSERVATION_SPACE}_{view.symbol}_{timeframe}_{version.semver}_{version.hash}"


def _replace(path: Path, write: "pa.Table | str") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(write, str):
        unfinished.write_text(write, encoding="utf-8")
    else:
        pq.write_table(write, unfinished)
    unfinished.replace(path)


class FeastRepository:
    """A repository folder with its registry. One process writes it; any number may read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        registry = {"registry_type": "sql", "path": f"sqlite:///{self._folder / 'registry.db'}"}
        configuration = {
            "project": PROJECT,
            "provider": "local",
            "registry": registry,
            "offline_store": {"type": "file"},
            "online_store": None,
            "entity_key_serialization_version": 3,
        }
        _replace(self._folder / "feature_store.yaml", yaml.safe_dump(configuration, sort_keys=False))
        self._store = FeatureStore(repo_path=str(self._folder))

    def has_rows(self, view: ComputedView) -> bool:
        """Say whether every day of the view's rows has its file."""
        return all(path.exists() for path, _ in self._files(view))

    def write_rows(self, view: ComputedView) -> None:
        """Write a view's rows, which must be whole days."""
        for path, table in self._files(view):
            _replace(path, table)

    def apply(self, views: list[ComputedView], version: FeatureConfigVersionInfo) -> str:
        """Register the views of one timeframe and the service over them, and give the service's name."""
        entity = Entity(name=JOIN_KEY, join_keys=[JOIN_KEY], value_type=ValueType.STRING)
        feature_views = [self._feature_view(view, entity) for view in views]
        service = FeatureService(name=service_name(views[0], version), features=list(feature_views))
        self._store.apply([entity, *feature_views, service])
        return service.name

    def _feature_view(self, view: ComputedView, entity: Entity) -> FeatureView:
        return FeatureView(
            name=view.name,
            entities=[entity],
            ttl=TTL,
            schema=[
                *(Field(name=str(field), dtype=Float32) for field in view.rows.columns),
                Field(name=JOIN_KEY, dtype=String),
            ],
            source=FileSource(
                name=view.name,
                path=str(self._folder / view.symbol / "year=*" / "month=*" / "day=*" / self._file_name(view)),
                timestamp_field=TIMESTAMP_FIELD,
            ),
            online=False,
            tags={"feature_role": view.role.value, "symbol": view.symbol},
        )

    @staticmethod
    def _file_name(view: ComputedView) -> str:
        return f"features_{hashlib.sha256(view.name.encode()).hexdigest()[:16]}.parquet"

    def _files(self, view: ComputedView) -> Iterator[tuple[Path, pa.Table]]:
        openings = pd.DatetimeIndex(view.rows.index)
        frame = view.rows.reset_index(drop=True)
        frame.insert(0, TIMESTAMP_FIELD, openings.as_unit("us"))
        frame.insert(1, JOIN_KEY, view.symbol)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        days = openings.floor("D")
        firsts = np.flatnonzero(days[1:] != days[:-1]) + 1
        for first, past in zip([0, *firsts], [*firsts, len(days)], strict=True):
            day: datetime = days[first]
            folder = self._folder / view.symbol / f"year={day:%Y}" / f"month={day:%m}" / f"day={day:%d}"
            yield folder / self._file_name(view), table.slice(first, past - first)
