"""Which parts of a run's range must come from the feature store, because the parent's frozen rows do not have them."""

from datetime import timedelta

from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange

_SHORTEST_MONTH = timedelta(days=28)


def needed_ranges(request: TrainingRequest, record: TrainingRecord | None) -> tuple[TimeRange, ...]:
    """The parts of `request.range` outside of the parent's frozen bars, in time order; none, one or two.

    The parts of a split leave no bar out at either end (`core/split_bounds.py`): training begins with the first frozen
    row and test ends with the last, so bounds.training.start and bounds.test.end are the openings of the first and
    the last frozen bar. The parent covers from the one to a timeframe past the other.

    What the parent itself asked for and did not freeze is not needed either: those are rows of the indicators' warm-up
    and times at which the market was closed. Only a child that asks beyond the parent's range needs them.

    A parent without a record, or of another symbol or timeframe, covers nothing.
    """
    asked = request.range
    if record is None or not same_market(request, record):
        return (asked,)
    # A month counts 30 days, but the bar after a February's opens after 28.
    bar = min(timedelta(minutes=request.timeframe.minutes), _SHORTEST_MONTH)
    first, past = record.data.bounds.training.start, record.data.bounds.test.end + bar
    parts = ((asked.start, min(asked.end, first)), (max(asked.start, past), asked.end))
    of_parent = record.request.range
    return tuple(
        TimeRange(start=start, end=end)
        for start, end in parts
        if start < end and not (of_parent.start <= start and end <= of_parent.end)
    )


def same_market(request: TrainingRequest, record: TrainingRecord) -> bool:
    """Whether a run's bars are bars of the parent's symbol and timeframe."""
    before = record.request
    return (before.symbol, before.timeframe) == (request.symbol, request.timeframe)
