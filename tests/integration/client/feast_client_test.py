"""A real Feast repository in the family's layout: SQL registry, day files, one service per configuration."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.registry.sql import SqlRegistry
from feast.types import Float32, String
from pydantic import JsonValue

from training_fsm.client.feast_client import FeastClient, FeastSettings
from training_fsm.core.feature_rows import FeatureRows
from training_fsm.core.frozen_data import freeze
from training_fsm.domain.errors import DataUnusable, FeaturesMissing, OutsideUnavailable
from training_fsm.domain.facts import Failure
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange

PROJECT = "drl_trading_preprocess"
OBSERVATION, REWARD = "observation_space", "reward_engineering"
RSI, BANDS = "rsi_14_d96c08b4", "bands_20_5e1f"
ENTITY = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)


def asked(**changes: JsonValue) -> TrainingRequest:
    """A request for EURUSD 4h from February to May 2017."""
    return TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "eurusd-ppo",
            "symbol": "EURUSD",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": "2017-02-01T00:00:00Z", "end": "2017-05-01T00:00:00Z"},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "rsi"}]},
            "data": {"columns": {"close": "close_price_value"}},
            **changes,
        }
    )


def configuration(version: str) -> FeatureConfigVersionInfo:
    """A feature configuration whose hash names a case of these tests."""
    versioned = asked().features.versioned(datetime(2026, 11, 24, tzinfo=UTC))
    return versioned.model_copy(update={"hash": version})


def bars() -> pd.DataFrame:
    """4h bars of January to May 2017 without weekends."""
    hours = pd.date_range("2017-01-02", "2017-06-01", freq="4h", tz="UTC", unit="us", inclusive="left")
    times = hours[hours.dayofweek < 5]
    random = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "event_timestamp": times,
            "symbol": "EURUSD",
            RSI: random.uniform(20, 80, len(times)),
            f"{BANDS}_upper": random.normal(1.06, 0.01, len(times)),
            f"{BANDS}_lower": random.normal(1.04, 0.01, len(times)),
            "close_price_value": 1.05 * np.exp(np.cumsum(random.normal(0, 1e-3, len(times)))),
            "atr_14_77": random.uniform(1e-3, 2e-3, len(times)),
        }
    )


def asked_bars() -> pd.DataFrame:
    """Those of them that the request asks for."""
    all_bars = bars()
    times = all_bars["event_timestamp"]
    return all_bars[(times >= "2017-02-01") & (times < "2017-05-01")].reset_index(drop=True)


@dataclass(frozen=True)
class Repository:
    """Writes a repository as the family's preprocess does."""

    folder: Path
    store: FeatureStore

    def view(
        self,
        stem: str,
        role: str,
        rows: pd.DataFrame,
        fields: Iterable[str] | None = None,
        tags: dict[str, str] | None = None,
        daily: bool = False,
    ) -> FeatureView:
        """Write a view's rows, into one file or a file a day, and define it."""
        name = f"{stem}_EURUSD_4h"
        file = f"features_{hashlib.sha256(name.encode()).hexdigest()[:12]}.parquet"
        times = rows["event_timestamp"]
        days = times.dt.floor("D")
        for day, of_day in rows.groupby(days if daily else days.clip(upper=days.min())):
            folder = self.folder / f"EURUSD/year={day:%Y}/month={day:%m}/day={day:%d}"
            folder.mkdir(parents=True, exist_ok=True)
            of_day.to_parquet(folder / file, index=False)
        path = str(self.folder / "EURUSD" / "year=*" / "month=*" / "day=*" / file)
        return self.defined(
            name, path, role, fields or [c for c in rows if c not in ("event_timestamp", "symbol")], tags
        )

    def defined(
        self, name: str, path: str, role: str, fields: Iterable[str], tags: dict[str, str] | None = None
    ) -> FeatureView:
        """Define a view over files."""
        return FeatureView(
            name=name,
            entities=[ENTITY],
            ttl=timedelta(days=1),
            schema=[*(Field(name=field, dtype=Float32) for field in fields), Field(name="symbol", dtype=String)],
            source=FileSource(name=name, path=path, timestamp_field="event_timestamp"),
            online=False,
            tags={"feature_role": role, "symbol": "EURUSD"} if tags is None else tags,
        )

    def serve(self, version: str, views: list[FeatureView], role: str = OBSERVATION) -> None:
        """Register views under the service of a configuration."""
        service = FeatureService(name=f"{role}_EURUSD_4h_1.0.0_{version}", features=list(views))
        self.store.apply([ENTITY, *views, service])


def opened(registry: str | dict[str, str]) -> FeatureStore:
    """A store on parquet files, as preprocess opens it."""
    return FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry=registry,
            offline_store={"type": "file"},
            online_store=None,
            entity_key_serialization_version=3,
        )
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """One repository with the good service and one service for each fault."""
    folder = tmp_path_factory.mktemp("feast")
    registry = {"registry_type": "sql", "path": f"sqlite:///{folder / 'registry.db'}"}
    store = opened(registry)
    (folder / "feature_store.yaml").write_text(
        f"project: {PROJECT}\nprovider: local\nregistry: {{registry_type: sql, path: '{registry['path']}'}}\n"
        "offline_store: {type: file}\nonline_store: null\nentity_key_serialization_version: 3\n"
    )
    made = Repository(folder, store)
    every = bars()
    key = ["event_timestamp", "symbol"]
    warm = every[[*key, RSI]].copy()
    warm.loc[asked_first() : asked_first() + 13, RSI] = np.nan
    others = every.assign(symbol="GBPUSD", close_price_value=99.0)
    rsi = made.view(RSI, OBSERVATION, warm, daily=True)
    bands = made.view(BANDS, OBSERVATION, every[[*key, f"{BANDS}_upper", f"{BANDS}_lower"]])
    atr = made.view("atr_14_77", REWARD, every[[*key, "atr_14_77"]])
    prices = pd.concat([others, every])[[*key, "close_price_value"]]
    close = made.view("close_price", REWARD, prices, daily=True)
    made.serve("good", [close, bands, rsi, atr])
    made.serve("split", [rsi])
    made.serve("split", [close], role=REWARD)
    _serve_faults(made, rsi, every[[*key, "close_price_value"]])
    return made


def asked_first() -> int:
    """Number of the first bar that the request asks for."""
    return int((bars()["event_timestamp"] < "2017-02-01").sum())


def _serve_faults(made: Repository, rsi: FeatureView, close: pd.DataFrame) -> None:
    """One service for each fault, each with a price view of its own that has it."""

    def price(stem: str, rows: pd.DataFrame) -> FeatureView:
        return made.view(stem, REWARD, rows)

    first = asked_first()
    time = close["event_timestamp"]
    made.serve("nocolumn", [rsi, made.view("x1", REWARD, close, ["close_price_value", "gone_field"])])
    made.serve("late", [made.view("x2", OBSERVATION, close[time >= "2017-02-10"])])
    made.serve("early", [made.view("x3", OBSERVATION, close[time < "2017-04-20"])])
    made.serve("empty", [made.view("x4", OBSERVATION, close[time < "2017-01-10"])])
    made.serve(
        "nofile", [made.defined("x5_EURUSD_4h", str(made.folder / "EURUSD/none*"), OBSERVATION, ["close_price_value"])]
    )
    made.serve(
        "hole",
        [rsi, price("x6", close.assign(close_price_value=close["close_price_value"].mask(close.index == first + 100)))],
    )
    made.serve("unmatched", [rsi, price("x7", close.drop(index=range(first + 50, first + 60)))])
    made.serve("matched", [rsi, price("x8", close.drop(index=range(first + 50, first + 53)))])
    made.serve("norows", [rsi, price("x9", close[time < "2017-01-10"])])
    made.serve("twice", [rsi, price("x10", pd.concat([close, close[first + 5 : first + 9]]))])
    made.serve(
        "clash", [rsi, price("x11", pd.concat([close, close[first + 5 : first + 6].assign(close_price_value=7.0)]))]
    )
    made.serve("text", [rsi, price("x12", close.assign(close_price_value="[[1.05]]"))])
    made.serve("untagged", [rsi, made.view("x13", REWARD, close, tags={"symbol": "EURUSD"})])
    made.serve("role", [rsi, made.view("x14", "reward", close)])
    made.serve("symbol", [rsi, made.view("x15", REWARD, close, tags={"feature_role": REWARD, "symbol": "GBPUSD"})])
    made.serve("noreward", [rsi])
    made.serve("noobservation", [price("x16", close)])
    made.serve("double", [rsi, price("x17", close), price("x18", close)])
    made.serve("viewless", [rsi, price("x19", close)])
    made.store.registry.delete_feature_view("x19_EURUSD_4h", PROJECT)
    made.serve("patchy", [rsi, made.view("x20", REWARD, close, daily=True)])
    # Preprocess wrote the days of another configuration over these: the file is there, the column is not.
    for path in made.folder.glob(f"EURUSD/year=2017/month=03/day=0*/{Path(made_path(made, 'x20')).name}"):
        pd.read_parquet(path).rename(columns={"close_price_value": "other"}).to_parquet(path, index=False)


def made_path(made: Repository, stem: str) -> str:
    """Where a view's files are."""
    view = made.store.registry.get_feature_view(f"{stem}_EURUSD_4h", PROJECT)
    assert view.batch_source is not None
    return str(view.batch_source.path)


@pytest.fixture(scope="module")
def client(repository: Repository) -> FeastClient:
    """The client under test, on the registry."""
    return FeastClient(FeastSettings(registry=f"sqlite:///{repository.folder / 'registry.db'}"))


def missing(client: FeastClient, version: str, wanted: TrainingRequest | None = None) -> Failure:
    """Read what is not there, give the failure."""
    with pytest.raises(FeaturesMissing) as raised:
        client.read(wanted or asked(), configuration(version))
    failure = raised.value.failure
    assert failure.kind == "features_missing"
    assert failure.service == f"observation_space_EURUSD_4h_1.0.0_{version}"
    return failure


def test_reads_the_services_rows(client: FeastClient) -> None:
    """Rows of [start, end) of this symbol, columns in the service's order, roles as the views' tags say."""
    rows = client.read(asked(), configuration("good"))
    assert rows.service == "observation_space_EURUSD_4h_1.0.0_good"
    assert rows.observation_columns == (f"{BANDS}_upper", f"{BANDS}_lower", RSI)
    assert rows.reward_columns == ("close_price_value", "atr_14_77")
    expected = asked_bars().drop(columns="symbol")
    expected.loc[:13, RSI] = np.nan
    columns = ["event_timestamp", *rows.observation_columns, *rows.reward_columns]
    pd.testing.assert_frame_equal(rows.frame, expected[columns])


def test_a_repository_folder_gives_the_same(client: FeastClient, repository: Repository) -> None:
    """A folder with feature_store.yaml is the other way to say where the store is."""
    of_folder = FeastClient(FeastSettings(repo_path=repository.folder))
    of_folder.warm_up()
    same(of_folder.read(asked(), configuration("good")), client.read(asked(), configuration("good")))


def same(one: FeatureRows, other: FeatureRows) -> None:
    """Assert that two reads gave the same."""
    assert (one.observation_columns, one.reward_columns, one.service) == (
        other.observation_columns,
        other.reward_columns,
        other.service,
    )
    pd.testing.assert_frame_equal(one.frame, other.frame)


def test_warm_up_dropped_rows_are_frozen(client: FeastClient, tmp_path: Path) -> None:
    """What is read can be frozen: the indicator's first rows are dropped and counted."""
    _, frozen = freeze(client.read(asked(), configuration("good")), asked(), tmp_path)
    assert (frozen.warmup_rows, frozen.rows) == (14, len(asked_bars()) - 14)


def test_uses_a_reward_service_where_there_is_one(client: FeastClient) -> None:
    """Views of the reward_engineering service join those of the observation service."""
    rows = client.read(asked(), configuration("split"))
    assert (rows.observation_columns, rows.reward_columns) == ((RSI,), ("close_price_value",))


def test_a_service_registered_later_is_seen(client: FeastClient, repository: Repository) -> None:
    """Nothing is read from a registry cache: what preprocess registers counts at the next read."""
    missing(client, "later")
    registry, project = repository.store.registry, PROJECT
    views = [registry.get_feature_view(f"{stem}_EURUSD_4h", project) for stem in (RSI, "close_price")]
    repository.serve("later", views)
    assert client.read(asked(), configuration("later")).reward_columns == ("close_price_value",)


def test_missing_service_names_those_that_are_there(client: FeastClient) -> None:
    """The failure has the service that was looked for and the symbol's others."""
    failure = missing(client, "never")
    assert failure.detail is not None
    assert "observation_space_EURUSD_4h_1.0.0_good" in failure.detail
    with pytest.raises(FeaturesMissing) as raised:
        client.read(asked(symbol="GBPUSD"), configuration("good"))
    assert raised.value.failure.detail == "services of GBPUSD: none"


def test_missing_column_names_view_and_field(client: FeastClient) -> None:
    """A field that the registry has and the files do not is named."""
    failure = missing(client, "nocolumn")
    assert failure.field == "gone_field"
    assert "x1_EURUSD_4h" in failure.words


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        ("late", "2017-02-01T00:00:00+00:00 to 2017-02-10T00:00:00+00:00"),
        ("early", "2017-04-20T00:00:00+00:00 to 2017-05-01T00:00:00+00:00"),
        ("empty", "2017-02-01T00:00:00+00:00 to 2017-05-01T00:00:00+00:00"),
        ("nofile", "2017-02-01T00:00:00+00:00 to 2017-05-01T00:00:00+00:00"),
    ],
)
def test_partial_range_names_what_lacks(client: FeastClient, version: str, lacking: str) -> None:
    """Rows that do not reach both ends, or are none, give the range that lacks."""
    assert missing(client, version).range == lacking


JANUARY, MARCH, MAY = (
    TimeRange(start=datetime(2017, month, 1, tzinfo=UTC), end=datetime(2017, month + 1, 1, tzinfo=UTC))
    for month in (1, 3, 5)
)


def test_nothing_lacks_where_all_is_there(client: FeastClient) -> None:
    """The service is named, and ranges that its views reach are no lack."""
    assert client.look_up(asked(), configuration("good"), [JANUARY, MAY], known=True) == (
        "observation_space_EURUSD_4h_1.0.0_good",
        (),
    )


def test_what_a_view_lacks_is_looked_up_range_by_range(client: FeastClient) -> None:
    """Each range is looked at by itself, and one view without rows lacks what all others have."""
    assert client.look_up(asked(), configuration("early"), [MARCH], known=True)[1] == ()
    april = TimeRange(start=MARCH.start, end=MAY.start)
    (lacking,) = client.look_up(asked(), configuration("early"), [JANUARY, april], known=True)[1]
    assert lacking == TimeRange(start=datetime(2017, 4, 20, tzinfo=UTC), end=MAY.start)
    assert client.look_up(asked(), configuration("norows"), [MARCH, MAY], known=True)[1] == (MARCH, MAY)
    whole = TimeRange(start=JANUARY.start, end=MAY.end)
    assert client.look_up(asked(), configuration("norows"), [whole], known=True)[1] == (
        TimeRange(start=datetime(2017, 1, 10, tzinfo=UTC), end=MAY.end),
    )


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("never", "feature service .*_never does not exist"),
        ("viewless", "feature view x19_EURUSD_4h .* does not exist"),
        ("nocolumn", "have no column gone_field"),
    ],
)
def test_what_is_gone_is_told_from_what_nobody_has_asked_for(client: FeastClient, version: str, words: str) -> None:
    """The parent's own service, view or column must be there; of another symbol's all is to be asked for."""
    with pytest.raises(FeaturesMissing, match=words):
        client.look_up(asked(), configuration(version), [JANUARY, MAY], known=True)
    found = client.look_up(asked(), configuration(version), [JANUARY, MAY], known=False)
    assert found == (f"observation_space_EURUSD_4h_1.0.0_{version}", (JANUARY, MAY))


def test_a_service_that_is_gone_is_noticed_where_no_range_is_needed(client: FeastClient) -> None:
    """A parent's service is looked for also where its frozen rows are all that the child needs."""
    assert client.look_up(asked(), configuration("good"), [], known=True)[1] == ()
    with pytest.raises(FeaturesMissing, match="does not exist"):
        client.look_up(asked(), configuration("never"), [], known=True)


def test_only_the_needed_parts_must_be_there(client: FeastClient) -> None:
    """Where a parent's rows stand for the rest, its bars may lack; of the needed parts they may not."""
    march_on = TimeRange(start=MARCH.start, end=MAY.start)
    rows = client.read(asked(), configuration("late"), [march_on])
    assert rows.frame["event_timestamp"].iloc[0] == pd.Timestamp("2017-02-10", tz="UTC")
    february = TimeRange(start=asked().range.start, end=MARCH.start)
    with pytest.raises(FeaturesMissing, match=r"view x2_EURUSD_4h of feature service .*_late has bars from 2017-02-10"):
        client.read(asked(), configuration("late"), [february, march_on])
    with pytest.raises(FeaturesMissing, match=r"view x9_EURUSD_4h of feature service .*_norows has no rows") as raised:
        client.read(asked(), configuration("norows"), [march_on])
    assert raised.value.failure.range == f"{march_on.start.isoformat()} to {march_on.end.isoformat()}"
    same(client.read(asked(), configuration("good"), [asked().range]), client.read(asked(), configuration("good")))


@pytest.mark.parametrize("version", ["empty", "norows", "nofile"])
def test_no_rows_are_an_empty_frame_where_none_is_needed(client: FeastClient, version: str) -> None:
    """A store that has lost all that the parent has frozen gives no rows, with every column."""
    rows = client.read(asked(), configuration(version), [])
    columns = ["event_timestamp", *rows.observation_columns, *rows.reward_columns]
    assert (rows.frame.columns.tolist(), len(rows.frame)) == (columns, 0)
    assert rows.frame["event_timestamp"].dtype == "datetime64[us, UTC]"
    assert (rows.frame.dtypes.iloc[1:] == "float64").all()
    assert "close_price_value" in columns


def test_closed_market_at_both_ends_is_no_lack(client: FeastClient) -> None:
    """A range from Saturday to Sunday has no bars at its ends and lacks nothing."""
    weekend_to_sunday = asked(range={"start": "2017-02-04T00:00:00Z", "end": "2017-04-30T12:00:00Z"})
    rows = client.read(weekend_to_sunday, configuration("good"))
    assert rows.frame["event_timestamp"].iloc[[0, -1]].dt.strftime("%a %d %H").tolist() == ["Mon 06 00", "Fri 28 20"]


def test_hole_in_a_column_fails_when_frozen(client: FeastClient, tmp_path: Path) -> None:
    """NaN after the warm-up names column and time."""
    with pytest.raises(DataUnusable, match="close_price_value: nan") as unusable:
        freeze(client.read(asked(), configuration("hole")), asked(), tmp_path)
    assert unusable.value.failure.range == asked_bars()["event_timestamp"][100].isoformat()


def test_days_whose_files_lack_the_column_are_holes(client: FeastClient, tmp_path: Path) -> None:
    """Another configuration's backfill over some days is noticed, not read around."""
    with pytest.raises(DataUnusable, match="close_price_value: nan at 2017-03-01T00"):
        freeze(client.read(asked(), configuration("patchy")), asked(), tmp_path)


def test_roles_that_do_not_match_fail(client: FeastClient) -> None:
    """More than 1 % of the bars without a match is a lack of the view that has fewer."""
    failure = missing(client, "unmatched")
    times = asked_bars()["event_timestamp"]
    assert failure.field == "close_price_value"
    assert failure.range == f"{times[50].isoformat()} to {times[59].isoformat()}"
    assert f"10 of {len(times)} bars are not in all of its views" in failure.words
    assert "x9_EURUSD_4h lacks most" in missing(client, "norows").words


def test_few_bars_without_a_match_are_left_out(client: FeastClient) -> None:
    """Up to 1 % is joined away."""
    rows = client.read(asked(), configuration("matched"))
    expected = asked_bars()["event_timestamp"].drop(index=range(50, 53)).reset_index(drop=True)
    pd.testing.assert_series_equal(rows.frame["event_timestamp"], expected)


def test_equal_duplicates_merge_and_unequal_fail(client: FeastClient) -> None:
    """The same row twice is one row; two different ones name column and time."""
    assert len(client.read(asked(), configuration("twice")).frame) == len(asked_bars())
    with pytest.raises(DataUnusable, match="close_price_value: 2 different rows") as unusable:
        client.read(asked(), configuration("clash"))
    assert unusable.value.failure.range == asked_bars()["event_timestamp"][5].isoformat()


def test_column_of_text_fails(client: FeastClient) -> None:
    """A price that is text, as the family's broken close_price, is named."""
    with pytest.raises(DataUnusable, match="close_price_value: expected numbers"):
        client.read(asked(), configuration("text"))


@pytest.mark.parametrize(
    ("version", "field", "words"),
    [
        ("untagged", "x13_EURUSD_4h", "expected tag feature_role observation_space or reward_engineering, got None"),
        ("role", "x14_EURUSD_4h", "got 'reward'"),
        ("symbol", "x15_EURUSD_4h", "expected tag symbol EURUSD, got 'GBPUSD'"),
        ("noreward", "close_price_value", "data.columns.close: .* has no field close_price_value"),
        ("noobservation", None, "no view tagged feature_role: observation_space"),
        ("double", "close_price_value", "is in x17_EURUSD_4h and x18_EURUSD_4h, expected in one"),
        ("viewless", "x19_EURUSD_4h", "feature view x19_EURUSD_4h .* does not exist"),
    ],
)
def test_service_that_does_not_hold_together(client: FeastClient, version: str, field: str | None, words: str) -> None:
    """Wrong tags, a price that is nowhere, a field that is twice: each names what it found."""
    with pytest.raises(FeaturesMissing, match=words) as raised:
        client.read(asked(), configuration(version))
    assert raised.value.failure.field == field


def test_unmapped_price_names_the_fields_there_are(client: FeastClient) -> None:
    """A mapped column that is in no view is said with what could be meant."""
    failure = missing(client, "good", asked(data={"columns": {"close": "close_price_value", "open": "open_value"}}))
    assert failure.field == "open_value"
    assert "data.columns.open" in failure.words
    assert failure.detail is not None
    assert "atr_14_77" in failure.detail


def test_rows_elsewhere_come_by_the_stores_own_call(client: FeastClient, repository: Repository) -> None:
    """A source that is not on this disk is read through Feast's offline store, to the same rows and the same errors."""
    remote = fsspec.filesystem("memory")
    remote.makedirs("/features", exist_ok=True)
    every = bars()
    with remote.open("/features/all.parquet", "wb") as file:
        every.to_parquet(file, index=False)
    path = "memory://features/all.parquet"
    rsi = repository.defined("r1_EURUSD_4h", path, OBSERVATION, [RSI])
    close = repository.defined("r2_EURUSD_4h", path, REWARD, ["close_price_value"])
    gone = repository.defined("r3_EURUSD_4h", path, REWARD, ["close_price_value", "gone_field"])
    repository.serve("remote", [rsi, close])
    repository.serve("remotegone", [rsi, gone])
    rows = client.read(asked(), configuration("remote"))
    pd.testing.assert_frame_equal(rows.frame, asked_bars()[["event_timestamp", RSI, "close_price_value"]])
    assert missing(client, "remotegone").field == "gone_field"


@pytest.mark.parametrize("kind", ["file", "postgres"])
def test_registry_may_be_a_file_or_on_postgres(
    kind: str, client: FeastClient, repository: Repository, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The family's registry is a file, or SQL on Postgres; both give the same rows, and changes are seen at once."""
    path = str(tmp_path / "registry.pb") if kind == "file" else request.getfixturevalue("database_url")
    store = opened(path if kind == "file" else {"registry_type": "sql", "path": path})
    elsewhere = Repository(repository.folder, store)
    registry = repository.store.registry
    views = [registry.get_feature_view(f"{stem}_EURUSD_4h", PROJECT) for stem in (RSI, "close_price")]
    elsewhere.serve("other", views)
    with FeastClient(FeastSettings(registry=path)) as reader:
        missing(reader, "split")
        elsewhere.serve("split", views)
        same(reader.read(asked(), configuration("split")), client.read(asked(), configuration("split")))
    if isinstance(store.registry, SqlRegistry):
        store.registry.write_engine.dispose()


def test_damaged_file_is_no_lack_of_features(client: FeastClient, repository: Repository) -> None:
    """A file that cannot be read is a fault outside, worth another try, and is named."""
    broken = repository.folder / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    repository.serve("broken", [repository.defined("b1_EURUSD_4h", str(broken), OBSERVATION, ["close_price_value"])])
    with pytest.raises(OutsideUnavailable, match=r"feast: .*broken\.parquet"):
        client.read(asked(), configuration("broken"))


def test_a_registry_that_is_being_written_is_unavailable(repository: Repository, tmp_path: Path) -> None:
    """Feast writes its registry file in place: half of it is no lack of features."""
    path = tmp_path / "registry.pb"
    registry = repository.store.registry
    views = [registry.get_feature_view(f"{stem}_EURUSD_4h", PROJECT) for stem in (RSI, "close_price")]
    Repository(repository.folder, opened(str(path))).serve("torn", views)
    whole = path.read_bytes()
    with FeastClient(FeastSettings(registry=str(path))) as reader:
        path.write_bytes(whole[: len(whole) // 2])
        for ask in (reader.warm_up, lambda: reader.read(asked(), configuration("torn"))):
            with pytest.raises(OutsideUnavailable, match="feast: DecodeError"):
                ask()
        path.write_bytes(whole)
        assert len(reader.read(asked(), configuration("torn")).frame)


@pytest.mark.parametrize("present", [False, True], ids=["no folder", "no tables"])
def test_registry_that_is_not_there_is_unavailable(tmp_path: Path, present: bool) -> None:
    """Before preprocess has made its registry the store is unavailable, and we make no tables in its place."""
    folder = tmp_path if present else tmp_path / "nowhere"
    away = FeastClient(FeastSettings(registry=f"sqlite:///{folder / 'registry.db'}"))
    for ask in (away.warm_up, lambda: away.read(asked(), configuration("good"))):
        with pytest.raises(OutsideUnavailable, match="feast: "):
            ask()


def test_folder_without_a_configuration_is_unavailable(tmp_path: Path) -> None:
    """A folder that preprocess has not filled yet is unavailable, not a fault of the request."""
    with pytest.raises(OutsideUnavailable, match="feast: "):
        FeastClient(FeastSettings(repo_path=tmp_path)).warm_up()


def test_settings_say_where_the_store_is_once() -> None:
    """Neither or both of folder and registry are refused."""
    with pytest.raises(ValueError, match="either repo_path or registry"):
        FeastSettings()
    with pytest.raises(ValueError, match="either repo_path or registry"):
        FeastSettings(repo_path=Path("here"), registry="sqlite://")
