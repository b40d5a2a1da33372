"""A continued run's rows: the parent's where both have bars, the feature store's elsewhere, and the proof of no drift.

The shared window reaches from the parent's first frozen bar to its last, cut to the child's range. In it the parent's
rows are used and the feature store's are only compared with them, as float32, bit by bit; NaN equals NaN.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training_fsm.core.data_checks import TIME
from training_fsm.core.feature_rows import FeatureRows
from training_fsm.core.frozen_data import frame_digest
from training_fsm.domain.errors import DataDrifted, ParentUnfit
from training_fsm.domain.facts import Difference, Failure, SharedRows
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.needed_ranges import same_market
from training_fsm.domain.request import TrainingRequest


def with_parent(
    rows: FeatureRows, parent_frame: pd.DataFrame, record: TrainingRecord, request: TrainingRequest
) -> tuple[FeatureRows, SharedRows | None]:
    """The feature store's rows with the parent's frozen ones (as `load_frozen` gives them) in the shared window.

    Columns come in the parent's order. Returns no SharedRows where symbol or timeframe are others, or no bar of the
    parent lies in the request's range; then the rows are the feature store's.
    Raises ParentUnfit for observation columns that are not the parent's; where bars are shared, for reward columns too.
    """
    observation = record.data.observation_columns
    reward = tuple(str(name) for name in parent_frame.columns if name not in (TIME, *observation))
    _check_columns("observation", observation, rows.observation_columns, rows.service)
    theirs = parent_frame[parent_frame[TIME].between(request.range.start, request.range.end, "left")]
    if not same_market(request, record) or theirs.empty:
        frame = rows.frame[[TIME, *observation, *rows.reward_columns]]
        return FeatureRows(frame, observation, rows.reward_columns, rows.service), None
    _check_columns("reward", reward, rows.reward_columns, rows.service)
    names = [TIME, *observation, *reward]
    theirs, found = theirs[names], _as_float32(rows.frame[names])
    shared = found[TIME].between(theirs[TIME].iloc[0], theirs[TIME].iloc[-1])
    parts = (rows.frame.loc[~shared, names], theirs.astype(dict.fromkeys(names[1:], np.float64)))
    whole = pd.concat([part for part in parts if not part.empty]).sort_values(TIME, ignore_index=True)
    return FeatureRows(whole, observation, reward, rows.service), _compared(theirs, found[shared].sort_values(TIME))


def check_drift(shared: SharedRows | None, accepted: bool) -> None:
    """Refuse rows that the feature store now gives otherwise than the parent was trained on, unless that is accepted.

    Raises DataDrifted with the first bar and column that differ and both values.
    """
    if shared is None or shared.first_difference is None or accepted:
        return
    first = shared.first_difference
    time = first.time.isoformat()
    raise DataDrifted(
        Failure(
            kind="data_drifted",
            words=f"{first.column} at {time}: the parent was trained on {_value(first.parent)}, the feature store now "
            f"has {_value(first.found)}; {shared.rows_different} of {shared.rows} shared bars differ; with "
            "accept_drift: true the run takes the parent's rows all the same",
            field=first.column,
            range=time,
        )
    )


def _check_columns(role: str, parent: Sequence[str], found: Sequence[str], service: str) -> None:
    gone = [name for name in parent if name not in found]
    new = [name for name in found if name not in parent]
    if gone or new:
        sides = [f"{words}: {', '.join(names)}" for words, names in (("gone", gone), ("new", new)) if names]
        raise ParentUnfit(
            Failure(
                kind="parent_unfit",
                words=f"{role} columns of feature service {service} are not the parent's; {'; '.join(sides)}",
                service=service,
                field=", ".join([*gone, *new]),
            )
        )


def _as_float32(frame: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in frame.columns if name != TIME]
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which differs from every frozen value
        return frame.astype({TIME: "datetime64[us, UTC]", **dict.fromkeys(names, np.float32)})


def _compared(theirs: pd.DataFrame, found: pd.DataFrame) -> SharedRows:
    nothing_found = found.empty
    different, first = (0, None) if nothing_found else _differences(theirs, found)
    return SharedRows(
        start=theirs[TIME].iloc[0].to_pydatetime(),
        end=theirs[TIME].iloc[-1].to_pydatetime(),
        rows=len(theirs),
        parent_digest=frame_digest(theirs),
        found_digest=None if nothing_found else frame_digest(found),
        rows_different=different,
        first_difference=first,
    )


def _differences(theirs: pd.DataFrame, found: pd.DataFrame) -> tuple[int, Difference | None]:
    """How many bars differ, and the first column of the first of them; a bar that one side lacks differs in all."""
    columns = [str(name) for name in theirs.columns if name != TIME]
    there, here = theirs.set_index(TIME)[columns], found.set_index(TIME)[columns]
    times = pd.DatetimeIndex(there.index).union(pd.DatetimeIndex(here.index))
    lacks_there, lacks_here = ~times.isin(there.index), ~times.isin(here.index)
    ours, others = _values(there, times), _values(here, times)
    unequal = (ours.view(np.uint32) != others.view(np.uint32)) & ~(np.isnan(ours) & np.isnan(others))
    unequal |= (lacks_there | lacks_here)[:, None]
    rows = np.flatnonzero(unequal.any(axis=1))
    if not len(rows):
        return 0, None
    row = int(rows[0])
    column = int(unequal[row].argmax())
    return len(rows), Difference(
        time=times[row].to_pydatetime(),
        column=columns[column],
        parent=None if lacks_there[row] else float(ours[row, column]),
        found=None if lacks_here[row] else float(others[row, column]),
    )


def _values(frame: pd.DataFrame, times: pd.DatetimeIndex) -> NDArray[np.float32]:
    return np.ascontiguousarray(frame.reindex(times).to_numpy(np.float32))


def _value(value: float | None) -> str:
    """Nine digits tell any two numbers of float32 apart."""
    return "no such bar" if value is None else f"{value:.9g}"
