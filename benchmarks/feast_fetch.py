"""How long a read of feature rows takes, and the freeze after it: `python -m benchmarks.feast_fetch`.

Two repositories in the family's layout: a year of EURUSD-like 4h bars in day files, five views; and 100,000 rows of ten
features in one view. Each is read by our client and by Feast's own file store through the same offline call.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    """Print one line per measurement, seconds, the best and the first of five."""
    began = time.perf_counter()
    import feast  # noqa: F401 - its import is what is measured

    print(f"import feast: {time.perf_counter() - began:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder) / "year", "a year of 4h bars, 5 views, day files", _year(), day_files=True)
        _measure(Path(folder) / "large", "100,000 rows x 10 features, one file", _large(), day_files=False)


def _year() -> list[pd.DataFrame]:
    hours = pd.date_range("2017-01-01", "2018-01-01", freq="4h", tz="UTC", inclusive="left", unit="us")
    return [_frame(hours[hours.dayofweek < 5], [name]) for name in ("close", "f1", "f2", "f3", "f4")]


def _large() -> list[pd.DataFrame]:
    times = pd.date_range("2017-01-01", periods=100_000, freq="4h", tz="UTC", unit="us")
    return [_frame(times, ["close", *(f"f{number}" for number in range(1, 10))])]


def _frame(times: pd.DatetimeIndex, fields: list[str]) -> pd.DataFrame:
    random = np.random.default_rng(1)
    values = {field: random.uniform(1, 2, len(times)) for field in fields}
    return pd.DataFrame({"event_timestamp": times, "symbol": "EURUSD", **values})


def _measure(folder: Path, title: str, frames: list[pd.DataFrame], day_files: bool) -> None:
    from training_fsm.client.feast_client import FeastClient, FeastSettings
    from training_fsm.core.frozen_data import freeze
    from training_fsm.domain.request import TrainingRequest

    times = frames[0]["event_timestamp"]
    request = TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "benchmark",
            "symbol": "EURUSD",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": times.iloc[0], "end": times.iloc[-1] + pd.Timedelta(hours=4)},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "f"}]},
            "data": {"columns": {"close": "close"}},
        }
    )
    config = request.features.versioned(datetime.now(UTC))
    with _repository(folder, frames, f"observation_space_EURUSD_4h_1.0.0_{config.hash}", day_files) as (url, pull):
        print(f"\n{title}")
        with FeastClient(FeastSettings(registry=url)) as client:
            _time("warm_up", client.warm_up)
            _time("read", lambda: client.read(request, config))
            rows = client.read(request, config)
        _time("the same rows by Feast's own file store", pull)
        _time("freeze", lambda: freeze(rows, request, folder / "spool"))


def _time(name: str, work: Callable[[], object]) -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    print(f"  {name}: {min(took):.3f} s, first {took[0]:.3f} s")


@contextmanager
def _repository(
    folder: Path, frames: list[pd.DataFrame], service: str, day_files: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
    from feast.types import Float32, String

    folder.mkdir()
    url = f"sqlite:///{folder / 'registry.db'}"
    config = RepoConfig(
        project="drl_trading_preprocess",
        provider="local",
        registry={"registry_type": "sql", "path": url},
        offline_store={"type": "file"},
        online_store=None,
        entity_key_serialization_version=3,
    )
    entity = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
    views = []
    for number, frame in enumerate(frames):
        days = frame["event_timestamp"].dt.floor("D")
        for day, of_day in frame.groupby(days if day_files else days.clip(upper=days.min())):
            into = folder / "EURUSD" / f"{day:year=%Y/month=%m/day=%d}"
            into.mkdir(parents=True, exist_ok=True)
            of_day.to_parquet(into / f"features_{number}.parquet", index=False)
        role = "observation_space" if number or len(frames) == 1 else "reward_engineering"
        fields = [Field(name=name, dtype=Float32) for name in frame.columns[2:]]
        pattern = folder / "EURUSD" / "year=*" / "month=*" / "day=*" / f"features_{number}.parquet"
        views.append(
            FeatureView(
                name=f"view_{number}",
                entities=[entity],
                schema=[*fields, Field(name="symbol", dtype=String)],
                source=FileSource(name=f"view_{number}", path=str(pattern), timestamp_field="event_timestamp"),
                online=False,
                tags={"feature_role": role, "symbol": "EURUSD"},
            )
        )
    FeatureStore(config=config).apply([entity, *views, FeatureService(name=service, features=list(views))])
    offline = get_offline_store_from_config(config.offline_store)

    def pull() -> None:
        for view, frame in zip(views, frames, strict=True):
            assert view.batch_source is not None
            offline.pull_all_from_table_or_query(
                config=config,
                data_source=view.batch_source,
                join_key_columns=["symbol"],
                feature_name_columns=list(frame.columns[2:]),
                timestamp_field="event_timestamp",
                start_date=frame["event_timestamp"].min(),
                end_date=frame["event_timestamp"].max(),
            ).to_df()

    yield url, pull


if __name__ == "__main__":
    main()
