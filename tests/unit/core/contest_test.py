"""Challenger and champion on bars of which neither was trained on any."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training_fsm.core.contest import BARS_MIN, Contender, HeldOutRing
from training_fsm.core.data_checks import TIME
from training_fsm.core.feature_rows import FeatureRows
from training_fsm.core.frozen_data import freeze
from training_fsm.domain.errors import FeaturesMissing
from training_fsm.domain.facts import Failure, FrozenData, ModelRef
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.request import TrainingRequest

ROWS = 600
NAME = ModelRef(name="noise", version=2)
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
SHORT, FLAT, LONG = 0, 1, 2


class Always:
    """A policy of one action; remembers how many numbers it was shown, and how often."""

    def __init__(self, action: int) -> None:
        self._action = action
        self.seen: list[int] = []

    def action(self, observation: np.ndarray) -> int:
        """That action."""
        self.seen.append(len(observation))
        return self._action


def asked(feature: str = "rsi", **changes: object) -> TrainingRequest:
    """A request on a rising price."""
    return TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "noise",
            "symbol": "NOISE",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": "2020-01-01T00:00:00Z", "end": "2020-05-01T00:00:00Z"},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": feature}]},
            "data": {"columns": {"close": "price"}},
            **changes,
        }
    )


def frame() -> pd.DataFrame:
    """A price that rises by a thousandth a bar."""
    times = pd.date_range("2020-01-01", periods=ROWS, freq="4h", tz="UTC", unit="us")
    return pd.DataFrame({TIME: times, "rsi": np.sin(np.arange(ROWS)), "price": 100 * 1.001 ** np.arange(ROWS)})


@pytest.fixture
def frozen(tmp_path: Path) -> FrozenData:
    """The rows as a run froze them."""
    return freeze(FeatureRows(frame(), ("rsi",), ("price",), "service"), asked(), tmp_path)[1]


def contender(
    frozen: FrozenData, action: int, request: TrainingRequest | None = None, trained_until: datetime | None = None
) -> Contender:
    """One that was trained on the frozen rows."""
    chosen = request or asked()
    until = trained_until or frozen.bounds.training.end
    return Contender(Always(action), chosen, chosen.features.versioned(NOON), frozen, until)


def nobody_reads(request: TrainingRequest, feature_config: FeatureConfigVersionInfo) -> pd.DataFrame:
    """Both have the same features."""
    raise AssertionError("nothing is read")


def test_both_play_the_same_bars_behind_both_trainings(frozen: FrozenData) -> None:
    """From the later training's end, plus the longer embargo, to the end of the challenger's test part."""
    rows = frame()
    until = rows[TIME].iloc[frozen.bounds.test.first + 4].to_pydatetime()
    champion = contender(frozen, SHORT, asked(split={"embargo_bars": 5}), until)
    challenger = contender(frozen, LONG)
    contest = HeldOutRing(challenger, (NAME, champion), 7, rows, nobody_reads).fight(asked(), "sharpe")
    first = frozen.bounds.test.first + 4 + 1 + 5
    assert (contest.champion, contest.stream_version, contest.obstacle) == (NAME, 7, None)
    assert contest.start == rows[TIME].iloc[first]
    assert contest.end == frozen.bounds.test.end
    assert contest.bars == frozen.bounds.test.last - first
    assert contest.challenger_metrics["total_return_fraction"] > 0 > contest.champion_metrics["total_return_fraction"]
    assert isinstance(challenger.policy, Always)
    assert isinstance(champion.policy, Always)
    assert len(challenger.policy.seen) == len(champion.policy.seen) == contest.bars - 1


def test_the_test_part_s_bars_before_it_are_not_played(frozen: FrozenData) -> None:
    """A champion that was trained on less does not open the challenger's validation part."""
    early = frame()[TIME].iloc[100].to_pydatetime()
    ring = HeldOutRing(contender(frozen, LONG), (NAME, contender(frozen, FLAT, None, early)), 1, frame(), nobody_reads)
    assert ring.fight(asked(), "sharpe").start == frozen.bounds.test.start


def test_windows_may_differ_and_both_decide_on_the_same_first_bar(frozen: FrozenData) -> None:
    """A longer window looks back at bars before the first one, and trades none of them."""
    champion = contender(frozen, LONG, asked(env={"window": 20}))
    contest = HeldOutRing(contender(frozen, LONG), (NAME, champion), 1, frame(), nobody_reads).fight(asked(), "sharpe")
    assert isinstance(champion.policy, Always)
    assert set(champion.policy.seen) == {20 + 4}
    assert contest.champion_metrics["total_return_fraction"] == pytest.approx(
        contest.challenger_metrics["total_return_fraction"]
    )


def test_costs_are_the_challenger_s_for_both(frozen: FrozenData) -> None:
    """A champion that once paid less has no advantage of it."""
    cheap, dear = asked(env={"fee": 0.0}), asked(env={"fee": 0.05})
    ring = HeldOutRing(contender(frozen, LONG, dear), (NAME, contender(frozen, LONG, cheap)), 1, frame(), nobody_reads)
    contest = ring.fight(dear, "sharpe")
    assert contest.champion_metrics == contest.challenger_metrics
    assert contest.champion_metrics["costs"] > 0


def test_without_a_champion_nothing_is_played(frozen: FrozenData) -> None:
    """The contest says so, and at which version of the stream."""
    contest = HeldOutRing(contender(frozen, LONG), None, 0, frame(), nobody_reads).fight(asked(), "sharpe")
    assert (contest.champion, contest.stream_version, contest.bars) == (None, 0, 0)


def test_what_cannot_be_compared_says_why(frozen: FrozenData) -> None:
    """Too few bars that neither has seen, or another market."""
    late = frame()[TIME].iloc[frozen.bounds.test.last - BARS_MIN].to_pydatetime()
    ring = HeldOutRing(contender(frozen, LONG), (NAME, contender(frozen, FLAT, None, late)), 1, frame(), nobody_reads)
    obstacle = ring.fight(asked(), "sharpe").obstacle
    assert obstacle is not None
    assert f"expected at least {BARS_MIN}" in obstacle
    other = contender(frozen, FLAT, asked(symbol="OTHER"))
    obstacle = (
        HeldOutRing(contender(frozen, LONG), (NAME, other), 1, frame(), nobody_reads).fight(asked(), "sharpe").obstacle
    )
    assert obstacle is not None
    assert "OTHER 4h" in obstacle


def test_a_champion_with_other_features_gets_its_own_from_the_feature_store(frozen: FrozenData) -> None:
    """Read by its own configuration for the challenger's bars; what is missing is an obstacle that names it."""
    of_macd = frozen.model_copy(
        update={
            "observation_columns": ("macd",),
            "normalisation": tuple(n.model_copy(update={"column": "macd"}) for n in frozen.normalisation),
        }
    )
    champion = contender(of_macd, SHORT, asked("macd"))
    reads: list[tuple[TrainingRequest, FeatureConfigVersionInfo]] = []

    def read(request: TrainingRequest, feature_config: FeatureConfigVersionInfo) -> pd.DataFrame:
        reads.append((request, feature_config))
        return frame().rename(columns={"rsi": "macd"})

    contest = HeldOutRing(contender(frozen, LONG), (NAME, champion), 1, frame(), read).fight(asked(), "sharpe")
    assert contest.obstacle is None
    assert contest.champion_metrics["total_return_fraction"] < 0
    ((request, feature_config),) = reads
    assert feature_config == champion.feature_config
    assert (request.range.start, request.range.end) == (frame()[TIME].iloc[0], asked().range.end)

    def gone(request: TrainingRequest, feature_config: FeatureConfigVersionInfo) -> pd.DataFrame:
        raise FeaturesMissing(Failure(kind="features_missing", words="feature service x does not exist"))

    ring = HeldOutRing(contender(frozen, LONG), (NAME, champion), 1, frame(), gone)
    obstacle = ring.fight(asked(), "sharpe").obstacle
    assert obstacle is not None
    assert "feature service x does not exist" in obstacle
    assert_holes_are_an_obstacle(frozen, champion)


def assert_holes_are_an_obstacle(frozen: FrozenData, champion: Contender) -> None:
    """Bars that only the challenger has cannot be played by both."""

    def with_holes(request: TrainingRequest, feature_config: FeatureConfigVersionInfo) -> pd.DataFrame:
        return frame().rename(columns={"rsi": "macd"}).iloc[:-3]

    ring = HeldOutRing(contender(frozen, LONG), (NAME, champion), 1, frame(), with_holes)
    obstacle = ring.fight(asked(), "sharpe").obstacle
    assert obstacle is not None
    assert "macd" in obstacle
