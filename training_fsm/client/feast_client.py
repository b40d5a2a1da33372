"""The feature store: the rows of a run's feature service, straight from the offline store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlparse

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
from feast import FeatureStore, FileSource, RepoConfig
from feast.data_format import ParquetFormat
from feast.errors import FeastError
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.registry.sql import FeastRegistrySchemaError, SqlRegistry
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sqlalchemy.exc import SQLAlchemyError

from training_fsm.client.day_files import read_day_files
from training_fsm.client.feature_service import (
    JOIN_KEY,
    OBSERVATION,
    REWARD,
    View,
    missing,
    resolve_service,
    service_name,
)
from training_fsm.core.data_checks import TIME, unusable
from training_fsm.core.feature_rows import (
    FeatureRows,
    ViewRows,
    check_coverage,
    join_views,
    lacking_ranges,
    united,
    within,
)
from training_fsm.domain.errors import FeaturesMissing, OutsideUnavailable
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange

PROJECT = "drl_trading_preprocess"
_POSTGRES_ARGUMENTS = {"connect_timeout": 10, "options": "-c statement_timeout=30000"}


@dataclass(frozen=True, slots=True)
class FeastSettings:
    """Where the feature store is: a folder with feature_store.yaml, or a registry whose rows are in parquet files."""

    repo_path: Path | None = None
    registry: str | None = None
    """SQLAlchemy URL (`postgresql+psycopg://`, `sqlite:///`), or path of a registry file."""
    project: str = PROJECT
    """With `registry` only; a folder's feature_store.yaml names its own."""

    def __post_init__(self) -> None:
        if (self.repo_path is None) == (self.registry is None):
            raise ValueError("feast: expected either repo_path or registry")


class FeastClient:
    """Reads feature rows. Opens the store at its first use; closes it as a context manager, or by `close`."""

    def __init__(self, settings: FeastSettings) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the registry's connections; the next use opens new ones."""
        self.__dict__.pop("_store", None)
        registry = self.__dict__.pop("_registry", None)
        if isinstance(registry, SqlRegistry):
            registry.write_engine.dispose()
            registry.read_engine.dispose()

    def warm_up(self) -> None:
        """Pay for opening the registry before a run needs it. Raises OutsideUnavailable."""
        with _reaching_feast():
            self._registry.list_feature_services(self._store.project, allow_cache=False)

    def look_up(
        self,
        request: TrainingRequest,
        feature_config: FeatureConfigVersionInfo,
        ranges: Sequence[TimeRange],
        known: bool,
    ) -> tuple[str, tuple[TimeRange, ...]]:
        """The run's feature service, and which parts of the ranges some view of it lacks; reads those ranges only.

        `known` says that the parent was trained with this very service. Then a service, view or column that is not
        there is gone, which raises FeaturesMissing; otherwise nobody has asked for it yet, and the whole ranges lack.
        Raises DataUnusable for a column that holds no numbers, OutsideUnavailable.
        """
        name = service_name(OBSERVATION, request.symbol, request.timeframe, feature_config)
        try:
            with _reaching_feast():
                service = resolve_service(self._registry, self._store.project, request, feature_config)
            lacking = [
                part
                for asked in ranges
                for view in service.views
                for part in lacking_ranges([self._rows(view, request, asked, name)], asked, request.timeframe)
            ]
        except FeaturesMissing:
            if known:
                raise
            return name, tuple(ranges)
        return name, united(lacking)

    def read(
        self,
        request: TrainingRequest,
        feature_config: FeatureConfigVersionInfo,
        needed: Sequence[TimeRange] | None = None,
    ) -> FeatureRows:
        """All fields of the run's feature service for the bars of [start, end), one row per bar that all views have.

        Only the `needed` parts of the range must be there (None: the whole range); of the rest, which a parent's rows
        stand for, comes what there is, which may be nothing.
        Columns come in the order of the service's views and their fields.
        Raises FeaturesMissing with service, field or range, DataUnusable, or OutsideUnavailable.
        """
        with _reaching_feast():
            service = resolve_service(self._registry, self._store.project, request, feature_config)
        rows = [self._rows(view, request, request.range, service.name) for view in service.views]
        if needed is None:
            check_coverage(rows, request.range, request.timeframe, service.name)
        # A few bars of a short part could lack in one view and be joined away, being less than 1 % of all.
        for part in needed or ():
            for view in within(rows, part):
                check_coverage([view], part, request.timeframe, service.name)
        observation, reward = service.fields(OBSERVATION), service.fields(REWARD)
        frame = join_views(rows, service.name, needed)[[TIME, *observation, *reward]]
        return FeatureRows(frame, observation, reward, service.name)

    @cached_property
    def _store(self) -> FeatureStore:
        settings = self._settings
        if settings.repo_path is not None:
            return FeatureStore(repo_path=str(settings.repo_path))
        return FeatureStore(
            config=RepoConfig(
                project=settings.project,
                provider="local",
                registry=_registry_config(settings.registry or ""),
                offline_store={"type": "file"},
                online_store=None,
                entity_key_serialization_version=3,
            )
        )

    @cached_property
    def _registry(self) -> BaseRegistry:
        return self._store.registry

    @cached_property
    def _offline_store(self) -> OfflineStore:
        return get_offline_store_from_config(self._store.config.offline_store)

    def _rows(self, view: View, request: TrainingRequest, asked: TimeRange, service: str) -> ViewRows:
        time = view.source.timestamp_field
        with _reaching_feast():
            files = self._local_files(view)
            if files is None:
                found = self._pull(view, asked, service)
            else:
                found = read_day_files(files, [time, JOIN_KEY, *view.fields])
        lacking = [name for name in (time, JOIN_KEY, *view.fields) if name not in found.columns]
        if lacking:
            raise _no_column(lacking, view, service)
        times = pd.to_datetime(found[time], utc=True).astype("datetime64[us, UTC]")
        here = (found[JOIN_KEY] == request.symbol) & (times >= asked.start) & (times < asked.end)
        columns = {name: _numbers(found.loc[here, name]) for name in view.fields}
        return ViewRows(view.name, pd.DataFrame({TIME: times[here], **columns}).reset_index(drop=True))

    def _local_files(self, view: View) -> Path | None:
        """The pattern of a view's parquet files where they are on this machine."""
        source = view.source
        if not isinstance(source, FileSource) or not isinstance(source.file_format, ParquetFormat | None):
            return None
        uri = FileSource.get_uri_for_file_path(self._store.config.repo_path, source.path)
        parsed = urlparse(uri)
        if parsed.scheme not in ("", "file"):
            return None
        return Path(parsed.path if parsed.scheme else uri)

    def _pull(self, view: View, asked: TimeRange, service: str) -> pd.DataFrame:
        """The rows themselves, by the store's own call: an as-of join would repeat stale ones."""
        try:
            return self._offline_store.pull_all_from_table_or_query(
                config=self._store.config,
                data_source=view.source,
                join_key_columns=[JOIN_KEY],
                feature_name_columns=list(view.fields),
                timestamp_field=view.source.timestamp_field,
                start_date=asked.start,
                end_date=asked.end,
            ).to_df()
        except KeyError as error:
            lacking = [name for name in view.fields if repr(name) in str(error)]
            raise _no_column(lacking or list(view.fields), view, service) from error


@contextmanager
def _reaching_feast() -> Iterator[None]:
    try:
        yield
    # A registry that is a file is written in place: who reads meanwhile may find half of it.
    except (FeastError, FeastRegistrySchemaError, DecodeError, SQLAlchemyError, OSError, pa.ArrowException) as error:
        raise OutsideUnavailable("feast", f"{type(error).__name__}: {error}") from error


def _registry_config(location: str) -> dict[str, object]:
    if "://" not in location or urlparse(location).scheme in ("file", "s3", "gs", "hdfs"):
        return {"registry_type": "file", "path": location}
    # A reader makes no tables: where they are missing, preprocess has not been here yet.
    registry: dict[str, object] = {"registry_type": "sql", "path": location, "schema_mode": "verify"}
    if location.startswith("postgresql"):
        registry["sqlalchemy_config_kwargs"] = {"pool_pre_ping": True, "connect_args": _POSTGRES_ARGUMENTS}
    return registry


def _numbers(column: pd.Series) -> pd.Series:
    try:
        return column.astype("float64")
    except (TypeError, ValueError) as error:
        raise unusable(f"{column.name}: expected numbers, got {column.dtype}: {error}", str(column.name)) from error


def _no_column(fields: list[str], view: View, service: str) -> FeaturesMissing:
    names = ", ".join(fields)
    return missing(f"feature view {view.name} of service {service}: its rows have no column {names}", service, names)
