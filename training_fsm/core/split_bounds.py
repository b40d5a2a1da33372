"""Where the training, validation and test parts begin and end."""

import pandas as pd

from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import Failure, PartBounds, SplitBounds
from training_fsm.domain.request import SplitSettings


def split_bounds(times: pd.DatetimeIndex, split: SplitSettings, embargo_bars: int) -> SplitBounds:
    """Cut bars into three parts in time order, with `embargo_bars` bars between two parts in none of them.

    Fractions are of the bars that remain without the two embargoes, rounded down for training and
    for training + validation, so that test takes the rest. With dates, training takes the bars before
    `train_until`, validation those before `validation_until`; the embargo is cut from the start of the later part.

    `times` are the openings of all bars, UTC, strictly increasing. Raises DataUnusable where a part has no bar.
    """
    if split.train_until is not None and split.validation_until is not None:
        train_end = int(times.searchsorted(pd.Timestamp(split.train_until)))
        validation_first = train_end + embargo_bars
        validation_end = int(times.searchsorted(pd.Timestamp(split.validation_until)))
    else:
        usable = len(times) - 2 * embargo_bars
        train_end = _fraction(usable, split.training)
        validation_first = train_end + embargo_bars
        validation_end = _fraction(usable, split.training + split.validation) + embargo_bars
    return SplitBounds(
        training=_part("training", times, 0, train_end, embargo_bars),
        validation=_part("validation", times, validation_first, validation_end, embargo_bars),
        test=_part("test", times, validation_end + embargo_bars, len(times), embargo_bars),
    )


def _fraction(bars: int, share: float) -> int:
    """Rounded down, but 0.7 + 0.1 of 10 bars is 8: the sum of two floats must not cost a bar."""
    return int(bars * share + 1e-6)


def _part(name: str, times: pd.DatetimeIndex, first: int, last: int, embargo_bars: int) -> PartBounds:
    if last <= first:
        raise DataUnusable(
            Failure(
                kind="data_unusable",
                words=f"split: the {name} part has no bar; there are {len(times)} bars "
                f"and {embargo_bars} are left out between two parts",
                field="split",
            )
        )
    return PartBounds(first=first, last=last, start=times[first].to_pydatetime(), end=times[last - 1].to_pydatetime())
