import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import JsonValue

from training_fsm.core.feature_rows import FeatureRows
from training_fsm.core.frozen_data import frame_digest, freeze, load_frozen
from training_fsm.core.parent_rows import check_drift, with_parent
from training_fsm.domain.errors import DataDrifted, DataUnusable, ParentUnfit
from training_fsm.domain.facts import Artifact, Difference, Fingerprint, FrozenData, SharedRows, StoredData
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.needed_ranges import needed_ranges
from training_fsm.domain.request import TrainingRequest

START, END = "2017-01-01T00:00:00Z", "2017-07-01T00:00:00Z"
SERVICE = "observation_space_EURUSD_4h_1.0.0_0123456789"


def request(start: str = START, end: str = END, **changes: JsonValue) -> TrainingRequest:
    """A request for EURUSD 4h of the first half of 2017, with changes."""
    return TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "eurusd-ppo",
            "symbol": "EURUSD",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": start, "end": end},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "rsi"}]},
            "data": {"columns": {"close": "close"}},
            **changes,
        }
    )


def history() -> pd.DataFrame:
    """4h bars from September 2016 to September 2017, none at weekends."""
    hours = pd.date_range("2016-09-01", "2017-09-01", freq="4h", tz="UTC", unit="us")
    times = hours[hours.dayofweek < 5]
    random = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "event_timestamp": times,
            "rsi": random.uniform(20, 80, len(times)),
            "roc": random.normal(0, 1e-3, len(times)),
            "atr": random.uniform(1e-3, 2e-3, len(times)),
            "close": 1.05 * np.exp(np.cumsum(random.normal(0, 1e-3, len(times)))),
        }
    )


def found(asked: TrainingRequest, warmup: int = 14, frame: pd.DataFrame | None = None) -> FeatureRows:
    """What the feature store gives for a request; RSI lacks its first values."""
    all_bars = history() if frame is None else frame
    inside = all_bars["event_timestamp"].between(asked.range.start, asked.range.end, "left")
    cut = all_bars[inside].reset_index(drop=True)
    cut.loc[: warmup - 1, "rsi"] = np.nan
    return FeatureRows(cut, ("rsi", "roc"), ("atr", "close"), SERVICE)


class Parent:
    """A model that was trained on the first half of 2017, as its child finds it."""

    def __init__(self, folder: Path) -> None:
        path, self.data = freeze(found(request()), request(), folder)
        self.frame = load_frozen(path, self.data)
        artifact = Artifact(uri="mlflow-artifacts:/1/data", sha256="0" * 64, size_bytes=1)
        self.record = TrainingRecord(
            run_id="parent",
            request=request(),
            feature_config=request().features.versioned(datetime(2026, 11, 24, tzinfo=UTC)),
            data=StoredData(artifact=artifact, **dict(self.data)),
            checkpoint=artifact,
            steps=2048,
            fingerprint=Fingerprint.model_construct(),
            trained_until=self.data.bounds.training.end,
            parent=None,
            root=None,
            depth=0,
        )

    def child(self, asked: TrainingRequest, rows: FeatureRows, folder: Path) -> tuple[pd.DataFrame, FrozenData]:
        """Freeze a child's rows, as a worker does."""
        joined, shared = with_parent(rows, self.frame, self.record, asked)
        check_drift(shared, accepted=False)
        path, frozen = freeze(
            joined,
            asked,
            folder,
            normalisation=self.data.normalisation,
            shared=shared,
            not_before=self.record.trained_until,
        )
        return load_frozen(path, frozen), frozen


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    """The parent."""
    return Parent(tmp_path / "parent")


def joined(parent: Parent, rows: FeatureRows, asked: TrainingRequest | None = None) -> tuple[FeatureRows, SharedRows]:
    """Rows with the parent's, where some are shared."""
    together, shared = with_parent(rows, parent.frame, parent.record, asked or request())
    assert shared is not None
    return together, shared


def test_same_data_gives_the_same_frozen_data(parent: Parent, tmp_path: Path) -> None:
    """Without any change a child has its parent's very rows: digest, bounds, warm-up, normalisation are the same."""
    _, frozen = parent.child(request(mode="continue"), found(request()), tmp_path)
    shared = frozen.shared
    assert frozen.model_copy(update={"shared": None}) == parent.data
    assert frozen.warmup_rows == 14
    assert shared is not None
    assert (shared.rows, shared.rows_different, shared.first_difference) == (parent.data.rows, 0, None)
    assert shared.parent_digest == shared.found_digest == parent.data.digest
    assert (shared.start, shared.end) == (parent.data.bounds.training.start, parent.data.bounds.test.end)


def test_store_that_lost_the_shared_bars_gives_the_same_with_a_warning(parent: Parent, tmp_path: Path) -> None:
    """The parent's rows do not need the feature store; that nothing could be compared is said."""
    rows = found(request())
    empty = FeatureRows(rows.frame[:0], rows.observation_columns, rows.reward_columns, SERVICE)
    _, frozen = parent.child(request(), empty, tmp_path)
    assert (frozen.digest, frozen.bounds) == (parent.data.digest, parent.data.bounds)
    assert frozen.shared is not None
    assert (frozen.shared.found_digest, frozen.shared.rows_different) == (None, 0)
    assert any("nothing was compared" in warning for warning in frozen.warnings)


def test_frozen_frame_begins_and_ends_where_its_bounds_do(parent: Parent) -> None:
    """What `needed_ranges` relies on: training.start and test.end are the first and the last frozen bar."""
    times, bounds = parent.frame["event_timestamp"], parent.data.bounds
    assert (bounds.training.first, bounds.test.last) == (0, len(times))
    assert (bounds.training.start, bounds.test.end) == (times.iloc[0], times.iloc[-1])


def test_child_whose_range_ends_later_adds_the_new_bars(parent: Parent, tmp_path: Path) -> None:
    """The parent's rows come first, the new ones after them; the normalisation is the parent's."""
    later = request(end="2017-09-01T00:00:00Z")
    frame, frozen = parent.child(later, found(later), tmp_path)
    pd.testing.assert_frame_equal(frame[: parent.data.rows], parent.frame)
    new = history()[lambda bars: bars["event_timestamp"].between("2017-07-01T00:00Z", "2017-08-31T20:00Z")]
    (needed,) = needed_ranges(later, parent.record)
    assert new["event_timestamp"].between(needed.start, needed.end, "left").all()
    np.testing.assert_array_equal(frame["close"][parent.data.rows :], new["close"].to_numpy(np.float32))
    assert frozen.normalisation == parent.data.normalisation
    assert frozen.shared is not None
    assert frozen.shared.rows == parent.data.rows


def test_child_whose_range_begins_earlier_has_its_own_warm_up(parent: Parent, tmp_path: Path) -> None:
    """Bars before the parent's come from the store, those that were its warm-up too, now that they have values."""
    earlier = request(start="2016-10-03T00:00:00Z")
    frame, frozen = parent.child(earlier, found(earlier), tmp_path)
    count = len(found(earlier).frame)
    assert (frozen.warmup_rows, frozen.rows) == (14, count - 14)
    pd.testing.assert_frame_equal(frame[-parent.data.rows :].reset_index(drop=True), parent.frame)
    assert frame["event_timestamp"].is_monotonic_increasing
    assert frame["event_timestamp"].is_unique


def test_shared_window_is_cut_to_the_childs_range(parent: Parent, tmp_path: Path) -> None:
    """A child of a shorter range shares just that range, and its digest is of those rows."""
    shorter = request(start="2017-02-01T00:00:00Z")
    frame, frozen = parent.child(shorter, found(shorter, warmup=0), tmp_path)
    assert frozen.shared is not None
    assert frozen.shared.start == datetime(2017, 2, 1, tzinfo=UTC)
    assert frozen.shared.parent_digest == frame_digest(frame) == frozen.digest
    past = request(start="2017-07-03T00:00:00Z", end="2017-09-01T00:00:00Z")
    rows, shared = with_parent(found(past), parent.frame, parent.record, past)
    assert shared is None
    pd.testing.assert_frame_equal(rows.frame, found(past).frame)


@pytest.mark.parametrize("value", [30.0, np.nan, np.inf, 1e39, "next", "negative zero"])
def test_one_other_value_is_drift(parent: Parent, value: float | str) -> None:
    """Any value that is not the same float32 is found, with bar, column, both sides and the number of bars."""
    frame = history()
    row = int((frame["event_timestamp"] == "2017-03-01T12:00").to_numpy().argmax())
    before = np.float32(frame.loc[row, "rsi"])
    if value == "negative zero":
        parent.frame.loc[parent.frame["event_timestamp"] == "2017-03-01T12:00", "rsi"] = np.float32(0)
        value, before = -0.0, np.float32(0)
    elif value == "next":
        value = float(np.nextafter(before, np.float32(100)))
    frame.loc[row, "rsi"] = value
    frame.loc[row + 5, ["roc", "close"]] = 1.0
    rows, shared = joined(parent, found(request(), frame=frame))
    first = shared.first_difference
    assert first is not None
    assert (shared.rows_different, first.column, first.parent) == (2, "rsi", float(before))
    assert first.time == datetime(2017, 3, 1, 12, tzinfo=UTC)
    with np.errstate(over="ignore"):
        np.testing.assert_equal(first.found, float(np.float32(value)))
    assert shared.parent_digest != shared.found_digest
    used = rows.frame.set_index("event_timestamp")["rsi"]
    assert np.float32(used[pd.Timestamp(first.time)]) == before
    with pytest.raises(
        DataDrifted, match=f"rsi at 2017-03-01T12:00.* trained on {before:.9g}, .* 2 of .*accept_drift: true"
    ):
        check_drift(shared, accepted=False)
    check_drift(shared, accepted=True)


def test_differences_below_float32_are_none(parent: Parent) -> None:
    """What is trained on is float32: a value that rounds to the same one has not drifted."""
    frame = history()
    frame["rsi"] = frame["rsi"].astype(np.float32).astype(np.float64)
    _, shared = joined(parent, found(request(), frame=frame))
    assert (shared.rows_different, shared.found_digest) == (0, shared.parent_digest)


def test_bars_that_one_side_lacks_are_drift(parent: Parent) -> None:
    """A bar that is gone from the store and one that it has more are differences; the parent's bars are used."""
    rows = found(request())
    time = rows.frame["event_timestamp"]
    gone = FeatureRows(
        rows.frame[~time.between("2017-03-01T00:00Z", "2017-03-01T20:00Z")], ("rsi", "roc"), ("atr", "close"), SERVICE
    )
    together, shared = joined(parent, gone)
    assert shared.rows_different == 6
    assert shared.first_difference == Difference(
        time=datetime(2017, 3, 1, tzinfo=UTC),
        column="rsi",
        parent=float(parent.frame.set_index("event_timestamp")["rsi"][pd.Timestamp("2017-03-01", tz="UTC")]),
        found=None,
    )
    with pytest.raises(DataDrifted, match="the feature store now has no such bar") as drifted:
        check_drift(shared, accepted=False)
    failure = drifted.value.failure
    assert (failure.kind, failure.field, failure.range) == ("data_drifted", "rsi", "2017-03-01T00:00:00+00:00")
    pd.testing.assert_series_equal(together.frame["event_timestamp"], time)
    saturday = rows.frame.iloc[[500]].assign(event_timestamp=pd.Timestamp("2017-03-04", tz="UTC").as_unit("us"))
    more = FeatureRows(pd.concat([rows.frame, saturday]), ("rsi", "roc"), ("atr", "close"), SERVICE)
    together, shared = joined(parent, more)
    assert shared.rows_different == 1
    assert shared.first_difference is not None
    assert shared.first_difference.parent is None
    assert shared.first_difference.time == datetime(2017, 3, 4, tzinfo=UTC)
    pd.testing.assert_series_equal(together.frame["event_timestamp"], time)


def test_accepted_drift_is_a_warning(parent: Parent, tmp_path: Path) -> None:
    """Who accepts drift trains on the parent's rows, and the frozen data says so."""
    frame = history()
    frame["roc"] *= 2
    rows, shared = joined(parent, found(request(), frame=frame))
    path, frozen = freeze(rows, request(), tmp_path, normalisation=parent.data.normalisation, shared=shared)
    pd.testing.assert_frame_equal(load_frozen(path, frozen), parent.frame)
    assert frozen.digest == parent.data.digest
    count = parent.data.rows
    assert any(f"{count} of {count} shared bars differ" in warning for warning in frozen.warnings)


def test_columns_in_another_order_are_brought_to_the_parents(parent: Parent, tmp_path: Path) -> None:
    """What the agent sees keeps its places, whatever order the service's views have now."""
    rows = found(request())
    turned = FeatureRows(rows.frame, ("roc", "rsi"), ("close", "atr"), SERVICE)
    _, frozen = parent.child(request(), turned, tmp_path)
    assert frozen.digest == parent.data.digest
    assert frozen.observation_columns == ("rsi", "roc")
    other = request(symbol="GBPUSD")
    together, shared = with_parent(turned, parent.frame, parent.record, other)
    assert shared is None
    assert together.observation_columns == ("rsi", "roc")
    assert list(together.frame.columns) == ["event_timestamp", "rsi", "roc", "close", "atr"]


@pytest.mark.parametrize(
    ("observation", "reward", "words", "field"),
    [
        (("rsi", "macd"), ("atr", "close"), "observation columns .* gone: roc; new: macd", "roc, macd"),
        (("rsi",), ("atr", "close"), "gone: roc$", "roc"),
        (("rsi", "roc", "macd"), ("atr", "close"), "are not the parent's; new: macd$", "macd"),
        (("rsi", "roc"), ("close",), "reward columns .* gone: atr$", "atr"),
        (("rsi", "roc", "atr"), ("close",), "observation columns .* new: atr$", "atr"),
    ],
)
def test_other_columns_do_not_fit(
    parent: Parent, observation: tuple[str, ...], reward: tuple[str, ...], words: str, field: str
) -> None:
    """A column that is gone, new, or in the other role is named, with the side that has it."""
    frame = found(request()).frame.assign(macd=0.5)
    rows = FeatureRows(frame[["event_timestamp", *observation, *reward]], observation, reward, SERVICE)
    with pytest.raises(ParentUnfit, match=words) as unfit:
        with_parent(rows, parent.frame, parent.record, request())
    failure = unfit.value.failure
    assert (failure.kind, failure.field, failure.service) == ("parent_unfit", field, SERVICE)


@pytest.mark.parametrize("other", [{"symbol": "GBPUSD"}, {"timeframe": "1d"}])
def test_another_market_shares_nothing(parent: Parent, other: dict[str, str]) -> None:
    """Rows of another symbol or timeframe are the store's; its prices may have other names."""
    asked = request(**other)
    rows = found(asked)
    together, shared = with_parent(rows, parent.frame, parent.record, asked)
    assert shared is None
    pd.testing.assert_frame_equal(together.frame, rows.frame)
    dropped = FeatureRows(rows.frame.drop(columns="atr"), ("rsi", "roc"), ("close",), SERVICE)
    assert with_parent(dropped, parent.frame, parent.record, asked)[0].reward_columns == ("close",)
    blind = FeatureRows(rows.frame.drop(columns="roc"), ("rsi",), ("atr", "close"), SERVICE)
    with pytest.raises(ParentUnfit, match="gone: roc"):
        with_parent(blind, parent.frame, parent.record, asked)
    check_drift(shared, accepted=False)


def test_nobody_is_judged_on_what_an_ancestor_was_trained_on(parent: Parent, tmp_path: Path) -> None:
    """The test part must begin behind the last bar of the line's training and the embargo; both times are said."""
    until = parent.record.trained_until
    reaching_back = request(split={"training": 0.5, "validation": 0.2, "test": 0.3})
    words = re.escape(f"trained on bars up to {until.isoformat()}; with embargo_bars = 1 ")
    with pytest.raises(DataUnusable, match=words) as refused:
        parent.child(reaching_back, found(reaching_back), tmp_path)
    assert refused.value.failure.field == "split"
    start = refused.value.failure.range
    assert f"begins at {start}" in refused.value.failure.words
    shorter = request(end="2017-03-01T00:00:00Z")
    with pytest.raises(DataUnusable, match="it may begin after the last bar there is"):
        parent.child(shorter, found(shorter), tmp_path)


@pytest.mark.parametrize("embargo", [0, 1, 5])
def test_the_embargo_is_kept_to_the_bar(parent: Parent, tmp_path: Path, embargo: int) -> None:
    """With as many bars between as the embargo has it fits, with one fewer it does not."""
    asked = request(split={"embargo_bars": embargo})
    _, data = freeze(found(asked), asked, tmp_path)
    times = found(asked).frame["event_timestamp"][data.warmup_rows :].reset_index(drop=True)
    last_allowed = times[data.bounds.test.first - embargo - 1].to_pydatetime()
    freeze(found(asked), asked, tmp_path, not_before=last_allowed)
    with pytest.raises(DataUnusable, match="the test part begins at"):
        freeze(found(asked), asked, tmp_path, not_before=times[data.bounds.test.first - embargo].to_pydatetime())


def test_normalisation_of_other_columns_is_a_fault(parent: Parent, tmp_path: Path) -> None:
    """A normalisation in another order would be given to the wrong columns by position."""
    with pytest.raises(ValueError, match="expected rsi, roc, got roc, rsi"):
        freeze(found(request()), request(), tmp_path, normalisation=parent.data.normalisation[::-1])
