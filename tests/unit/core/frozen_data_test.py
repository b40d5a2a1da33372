import hashlib
import struct
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import JsonValue

from training_fsm.core.feature_rows import FeatureRows
from training_fsm.core.frozen_data import frame_digest, freeze, load_frozen
from training_fsm.domain.errors import ArtifactDamaged, DataUnusable
from training_fsm.domain.facts import FrozenData
from training_fsm.domain.request import TrainingRequest


def request(**changes: JsonValue) -> TrainingRequest:
    """A request for EURUSD 4h of 2017, with changes to its sections."""
    return TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "eurusd-ppo",
            "symbol": "EURUSD",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "rsi"}]},
            "data": {"columns": {"close": "close"}},
            **changes,
        }
    )


def bars(count: int = 1560) -> pd.DataFrame:
    """4h bars from Monday 2 January 2017 on, none at weekends; RSI lacks its first 14 values."""
    hours = pd.date_range("2017-01-02", periods=count * 2, freq="4h", tz="UTC", unit="us")
    times = hours[hours.dayofweek < 5][:count]
    random = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "event_timestamp": times,
            "rsi": random.uniform(20, 80, count),
            "roc": random.normal(0, 1e-3, count),
            "close": 1.05 * np.exp(np.cumsum(random.normal(0, 1e-3, count))),
        }
    )
    frame.loc[:13, "rsi"] = np.nan
    return frame


def rows(frame: pd.DataFrame) -> FeatureRows:
    """As the feature store hands them over."""
    return FeatureRows(frame, ("rsi", "roc"), ("close",), "observation_space_EURUSD_4h_1.0.0_0123456789")


def frozen_of(frame: pd.DataFrame, asked: TrainingRequest, folder: Path) -> FrozenData:
    """What is known of a frame once it is frozen."""
    return freeze(rows(frame), asked, folder)[1]


def test_freezes_rows_and_loads_the_same(tmp_path: Path) -> None:
    """What is loaded is what was given: without the warm-up, sorted, as float32."""
    given = bars()
    path, frozen = freeze(rows(given.sample(frac=1, random_state=1)), request(), tmp_path)
    loaded = load_frozen(path, frozen)
    expected = given[14:].reset_index(drop=True)
    assert list(loaded.columns) == ["event_timestamp", "rsi", "roc", "close"]
    assert loaded["event_timestamp"].dtype == "datetime64[us, UTC]"
    pd.testing.assert_series_equal(loaded["event_timestamp"], expected["event_timestamp"])
    for name in ("rsi", "roc", "close"):
        np.testing.assert_array_equal(loaded[name].to_numpy(), expected[name].to_numpy(np.float32))
    assert (frozen.rows, frozen.warmup_rows) == (1546, 14)
    assert [path.name for path in tmp_path.iterdir()] == [f"data-{frozen.digest[:16]}.parquet"]


def test_digest_is_the_documented_one(tmp_path: Path) -> None:
    """Somebody with the file and the documentation comes to the same digest with the standard library."""
    path, frozen = freeze(rows(bars()), request(), tmp_path)
    table = pq.read_table(path).to_pydict()
    text = b""
    for name, values in table.items():
        kind, letter = ("<i8", "q") if name == "event_timestamp" else ("<f4", "f")
        numbers = [round(v.timestamp() * 1_000_000) if isinstance(v, datetime) else v for v in values]
        text += struct.pack("<I", len(name)) + name.encode() + kind.encode() + struct.pack("<Q", len(numbers))
        text += struct.pack(f"<{len(numbers)}{letter}", *numbers)
    assert frozen.digest == hashlib.sha256(text).hexdigest()


def test_digest_sees_values_names_times_and_order_but_no_encoding() -> None:
    """The digest depends on the content of the frame and on nothing else."""
    frame = bars(20)[14:].astype({"rsi": np.float32, "roc": np.float32, "close": np.float32})
    digest = frame_digest(frame)
    assert frame_digest(frame.reset_index(drop=True)) == digest
    nanoseconds = frame.assign(event_timestamp=frame["event_timestamp"].dt.as_unit("ns"))
    assert frame_digest(nanoseconds.assign(roc=frame["roc"].astype(">f4").astype("f4"))) == digest
    changed = frame.copy()
    changed.iloc[3, 2] = np.nextafter(changed.iloc[3, 2], np.float32(1))
    others = [
        changed,
        frame.rename(columns={"roc": "rocket"}),
        frame[["event_timestamp", "roc", "rsi", "close"]],
        frame.iloc[::-1],
        frame[1:],
        frame.assign(event_timestamp=frame["event_timestamp"] + pd.Timedelta(microseconds=1)),
    ]
    assert len({digest, *(frame_digest(other) for other in others)}) == 1 + len(others)


def test_altered_file_is_noticed(tmp_path: Path) -> None:
    """A frame with another value, a file cut short and one that is gone are damage, not data."""
    path, frozen = freeze(rows(bars()), request(), tmp_path)
    whole = path.read_bytes()
    changed = bars()
    changed.loc[1000, "close"] *= 1.001
    other_path, other = freeze(rows(changed), request(), tmp_path / "other")
    path.write_bytes(other_path.read_bytes())
    with pytest.raises(ArtifactDamaged, match=f"expected digest {frozen.digest}, got {other.digest}") as damaged:
        load_frozen(path, frozen)
    assert damaged.value.failure.kind == "artifact_damaged"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactDamaged, match=r"data-.*\.parquet: expected .* got Arrow"):
        load_frozen(path, frozen)
    path.unlink()
    with pytest.raises(ArtifactDamaged, match="got FileNotFoundError"):
        load_frozen(path, frozen)


def test_normalisation_knows_the_training_part_only(tmp_path: Path) -> None:
    """Mean and deviation are those of the training rows; validation and test cannot leak into them."""
    given = bars()
    frozen = frozen_of(given, request(), tmp_path)
    training = frozen.bounds.training
    given.loc[14 + training.last :, ["rsi", "roc"]] *= 1000
    again = frozen_of(given, request(), tmp_path)
    assert again.normalisation == frozen.normalisation
    assert [column.column for column in frozen.normalisation] == ["rsi", "roc"]
    values = given["rsi"][14 : 14 + training.last].to_numpy(np.float32).astype(np.float64)
    assert (frozen.normalisation[0].mean, frozen.normalisation[0].deviation) == pytest.approx(
        (values.mean(), values.std()), rel=1e-12
    )


def test_constant_column_divides_by_one_and_warns(tmp_path: Path) -> None:
    """A constant whose float sum is not exact still counts as constant."""
    frozen = frozen_of(bars().assign(roc=0.1), request(), tmp_path)
    assert frozen.normalisation[1].deviation == 1.0
    assert "roc: constant in the training part" in frozen.warnings


def test_equal_duplicates_merge_and_do_not_count(tmp_path: Path) -> None:
    """A row that came twice is one row, NaN equal to NaN."""
    once = frozen_of(bars(), request(), tmp_path)
    twice = frozen_of(pd.concat([bars(), bars()[5:40]]), request(), tmp_path)
    assert twice == once


def test_unequal_duplicates_fail(tmp_path: Path) -> None:
    """Two different rows of a bar name the column that differs and the bar."""
    clash = bars()[100:101].assign(roc=9.0)
    time = clash["event_timestamp"].iloc[0].isoformat()
    with pytest.raises(DataUnusable, match=r"roc: 2 different rows at .*, 9$") as unusable:
        frozen_of(pd.concat([bars(), clash]), request(), tmp_path)
    assert (unusable.value.failure.field, unusable.value.failure.range) == ("roc", time)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_no_number_after_the_warm_up_fails(tmp_path: Path, value: float) -> None:
    """NaN, infinity and what float32 cannot hold name column and time."""
    frame = bars()
    frame.loc[777, "roc"] = value
    with pytest.raises(DataUnusable, match="roc: ") as unusable:
        frozen_of(frame, request(), tmp_path)
    assert unusable.value.failure.field == "roc"
    assert unusable.value.failure.range == frame["event_timestamp"][777].isoformat()


def test_column_without_any_value_fails(tmp_path: Path) -> None:
    """A column that is empty throughout is named, not dropped as a warm-up of everything."""
    with pytest.raises(DataUnusable, match="roc: none of the 1560 rows has a value"):
        frozen_of(bars().assign(roc=np.nan), request(), tmp_path)


def test_long_warm_up_warns(tmp_path: Path) -> None:
    """More than a tenth of the rows dropped is worth knowing."""
    frame = bars()
    frame.loc[:199, "rsi"] = np.nan
    frozen = frozen_of(frame, request(), tmp_path)
    assert frozen.warmup_rows == 200
    assert any(warning.startswith("200 of 1560 rows are dropped") for warning in frozen.warnings)


@pytest.mark.parametrize("price", [0.0, -1.05])
def test_price_that_is_none_fails(tmp_path: Path, price: float) -> None:
    """A price of zero or below names column, time and what it is mapped to."""
    frame = bars()
    frame.loc[300, "close"] = price
    with pytest.raises(DataUnusable, match=r"close: .* more than 0 of data\.columns\.close") as unusable:
        frozen_of(frame, request(), tmp_path)
    assert unusable.value.failure.range == frame["event_timestamp"][300].isoformat()


def test_atr_may_be_zero_but_not_below(tmp_path: Path) -> None:
    """A bar without movement has ATR 0; below that something is wrong."""
    mapped = request(data={"columns": {"close": "close", "atr": "roc"}})
    frozen_of(bars().assign(roc=lambda frame: frame["roc"].abs().where(frame.index != 500, 0.0)), mapped, tmp_path)
    with pytest.raises(DataUnusable, match=r"roc: .* at least 0 of data\.columns\.atr"):
        frozen_of(bars(), mapped, tmp_path)


def test_gaps_are_counted_and_the_longest_named(tmp_path: Path) -> None:
    """Weekends are gaps of 13 bars (12 lack); a hole around one is the longest; a clock change is none."""
    frame = bars()
    shifted = frame["event_timestamp"].where(frame.index < 200, frame["event_timestamp"] + pd.Timedelta(hours=1))
    frame = frame.assign(event_timestamp=shifted).drop(index=range(610, 640)).reset_index(drop=True)
    frozen = frozen_of(frame, request(), tmp_path)
    assert frozen.gaps.count == 51
    assert frozen.gaps.longest_bars == 13 + 30
    assert frozen.gaps.longest_after == frame["event_timestamp"][609].to_pydatetime()


@pytest.mark.parametrize(("max_gap_bars", "fails"), [(12, True), (13, False)])
def test_only_a_gap_above_the_limit_fails(tmp_path: Path, max_gap_bars: int, fails: bool) -> None:
    """The limit of the request is the longest step that is still allowed."""
    limited = request(data={"columns": {"close": "close"}, "max_gap_bars": max_gap_bars})
    if not fails:
        assert frozen_of(bars(), limited, tmp_path).gaps.longest_bars == 13
        return
    with pytest.raises(DataUnusable, match=r"13 bars from 2017-01-06T20.* at most data\.max_gap_bars = 12"):
        frozen_of(bars(), limited, tmp_path)


def test_rows_of_another_timeframe_fail(tmp_path: Path) -> None:
    """Hourly rows among 4h bars are not taken for bars."""
    stray = bars()[50:51].assign(event_timestamp=lambda frame: frame["event_timestamp"] + pd.Timedelta(hours=1))
    with pytest.raises(DataUnusable, match="rows of another timeframe"):
        frozen_of(pd.concat([bars(), stray]), request(), tmp_path)


def test_periods_per_year_count_the_asked_range(tmp_path: Path) -> None:
    """A year of 4h bars without weekends has 1560 of them, the warm-up included, in 365 days: 1561 in 365.25."""
    assert frozen_of(bars(), request(), tmp_path).periods_per_year == 1561


def test_short_test_part_warns_and_a_long_one_does_not(tmp_path: Path) -> None:
    """Fewer than 252 test bars are a warning, 252 are none."""
    embargo = {"embargo_bars": 0, "training": 0.5, "validation": 0.25, "test": 0.25}
    full = frozen_of(bars(14 + 1008), request(split=embargo), tmp_path)
    short = frozen_of(bars(14 + 1004), request(split=embargo), tmp_path)
    assert (full.bounds.test.last - full.bounds.test.first, full.warnings) == (252, ())
    assert short.warnings == ("the test part has 251 bars, fewer than 252: its metrics say little",)


def test_part_too_short_for_an_episode_fails(tmp_path: Path) -> None:
    """A part must hold the window of an observation and two bars to act on."""
    with pytest.raises(DataUnusable, match="the validation part has 4 bars, expected at least 5"):
        frozen_of(bars(14 + 46), request(env={"window": 3}), tmp_path)
    frozen_of(bars(14 + 60), request(env={"window": 3}), tmp_path)


def test_no_rows_fail(tmp_path: Path) -> None:
    """An empty frame is an error of its own."""
    with pytest.raises(DataUnusable, match="no rows"):
        frozen_of(bars()[:0], request(), tmp_path)
