from datetime import UTC, datetime

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_fsm.core.agent_training_service import AgentTrainingService
from training_fsm.core.core_engine import CoreEngine
from training_fsm.core.split_service import SplitDatasets, SplitService
from training_fsm.domain.errors import DataUnusable


def frame(rows: int) -> pd.DataFrame:
    """So many days, with each row's number."""
    times = pd.date_range("2020-01-01", periods=rows, freq="D", tz="UTC")
    return pd.DataFrame({"event_timestamp": times, "row": range(rows)})


def rows(split: SplitDatasets) -> list[list[int]]:
    """The numbers of the rows in each part."""
    return [part["row"].tolist() for part in (split.training_data, split.validation_data, split.test_data)]


@given(st.integers(60, 300), st.integers(0, 9))
def test_parts_are_in_order_with_the_embargo_between(count: int, embargo: int) -> None:
    """No row is in two parts, and exactly the embargo lies between two of them."""
    training, validation, test = rows(SplitService().split_dataset(frame(count), 0.6, 0.2, 0.2, embargo))
    assert training[0] == 0
    assert test[-1] == count - 1
    assert validation[0] - training[-1] == test[0] - validation[-1] == embargo + 1
    assert len(training) + len(validation) + len(test) + 2 * embargo == count


def test_default_ratios() -> None:
    """Eight, one and one tenth of what the embargoes leave."""
    training, validation, test = rows(SplitService().split_dataset(frame(102)))
    assert [len(training), len(validation), len(test)] == [80, 10, 10]


def test_by_dates() -> None:
    """The first bar that is no longer training is the first of the embargo."""
    split = SplitService().split_dataset_by_dates(
        frame(30), datetime(2020, 1, 11, tzinfo=UTC), datetime(2020, 1, 21, tzinfo=UTC), embargo_bars=2
    )
    assert rows(split) == [list(range(10)), list(range(12, 20)), list(range(22, 30))]


def test_without_times_the_rows_are_counted() -> None:
    """A frame without a time column splits as one with it."""
    bare = frame(50).drop(columns="event_timestamp")
    assert rows(SplitService().split_dataset(bare)) == rows(SplitService().split_dataset(frame(50)))


def test_unusable_frames_are_refused() -> None:
    """Too short a part, times that run backwards, and dates without times."""
    service = SplitService()
    with pytest.raises(DataUnusable, match="validation"):
        service.split_dataset(frame(5))
    with pytest.raises(DataUnusable, match="must ascend"):
        service.split_dataset(frame(50).iloc[::-1])
    with pytest.raises(DataUnusable, match="event_timestamp"):
        service.split_dataset_by_dates(
            frame(50).drop(columns="event_timestamp"),
            datetime(2020, 1, 5, tzinfo=UTC),
            datetime(2020, 1, 9, tzinfo=UTC),
        )
    with pytest.raises(ValueError, match="sum of 1"):
        service.split_dataset(frame(50), 0.5, 0.1, 0.1)


def test_core_engine_hands_out_services() -> None:
    """Each service by its type, and a clear error for any other."""
    engine = CoreEngine()
    assert isinstance(engine.get_service(SplitService), SplitService)
    assert isinstance(engine.get_service(AgentTrainingService), AgentTrainingService)
    with pytest.raises(LookupError, match="expected SplitService or AgentTrainingService"):
        engine.get_service(int)  # type: ignore[call-overload]
