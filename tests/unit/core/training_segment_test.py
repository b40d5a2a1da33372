"""The last tests run this file as a program: it trains in forked children, which are killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training_fsm.core.agent import pin_torch
from training_fsm.core.checkpoint import read_policy
from training_fsm.core.fingerprint import fingerprint
from training_fsm.core.market_data import normalisation_of
from training_fsm.core.split_bounds import split_bounds
from training_fsm.core.trading_env import BaseTradingEnv, Observation, TradingEnv
from training_fsm.core.training_loop import CurvePoint
from training_fsm.core.training_segment import SegmentResult, owner_digest, train_segment
from training_fsm.domain.errors import ArtifactDamaged, ResumeImpossible, TrainingDiverged
from training_fsm.domain.events import DataFrozen
from training_fsm.domain.facts import Artifact, Gaps
from training_fsm.domain.request import TrainingRequest

ROWS = 1_500
AGENT = {
    "seed": 5,
    "total_timesteps": 4_000,  # sixteen rollouts of 256
    "n_envs": 2,
    "net_arch": [16, 16],
    "checkpoint_every_timesteps": 700,
    "hyperparameters": {
        "n_steps": 128,
        "n_epochs": 4,
        "learning_rate": {"schedule": "linear", "start": 1e-3, "end": 1e-5},
        "clip_range": {"schedule": "linear", "start": 0.3, "end": 0.1, "horizon_timesteps": 8_000},
    },
}


def request(**agent: object) -> TrainingRequest:
    """A small run whose fills draw random numbers."""
    return TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "noise-ppo",
            "symbol": "NOISE",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "noise"}]},
            "data": {"columns": {"close": "price", "atr": "atr"}},
            "env": {
                "slippage_atr_based": 0.1,
                "slippage_against_trade_probability": 0.5,
                "max_alltime_drawdown": 0.05,
                "window": 3,
                "episode_bars": 60,
            },
            "agent": AGENT | agent,
        }
    )


def data(asked: TrainingRequest) -> tuple[pd.DataFrame, DataFrozen]:
    """A random walk as a frozen frame."""
    generator = np.random.default_rng(8)
    frame = pd.DataFrame({"event_timestamp": pd.date_range("2020-01-01", periods=ROWS, freq="4h", tz="UTC")})
    for column in ("b", "a"):
        frame[column] = generator.normal(3.0, 2.0, ROWS).astype(np.float32)
    frame["price"] = (100 * np.exp(np.cumsum(generator.normal(0, 0.005, ROWS)))).astype(np.float32)
    frame["atr"] = np.float32(0.5)
    bounds = split_bounds(pd.DatetimeIndex(frame["event_timestamp"]), asked.split, asked.embargo_bars)
    return frame, DataFrozen(
        artifact=Artifact(uri="memory:", sha256="0" * 64, size_bytes=0),
        digest="0" * 64,
        rows=ROWS,
        warmup_rows=0,
        gaps=Gaps(count=0, longest_bars=0, longest_after=None),
        periods_per_year=2191.5,
        observation_columns=("b", "a"),
        bounds=bounds,
        normalisation=normalisation_of(frame.iloc[: bounds.training.last], ("b", "a")),
    )


@dataclass
class Watcher:
    """Keeps what it is told, and can act on it."""

    points: list[Sequence[CurvePoint]] = field(default_factory=list)
    checkpoints: list[tuple[Path, int, str]] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)
    stop_after_rollouts: int | None = None
    at_rollout: Callable[[int], None] = lambda _step: None
    at_checkpoint: Callable[[int], None] = lambda _step: None

    def on_progress(self, step: int, total: int, steps_per_s: float, metrics: dict[str, float]) -> None:
        self.progress.append((step, total))

    def on_rollout(self, points: Sequence[CurvePoint]) -> None:
        self.points.append(points)
        self.at_rollout(points[0].step)

    def on_checkpoint(self, path: Path, step: int, sha256: str) -> None:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        self.checkpoints.append((path, step, sha256))
        self.at_checkpoint(step)

    def should_stop(self) -> bool:
        return self.stop_after_rollouts is not None and len(self.points) >= self.stop_after_rollouts


def segment(
    spool: Path, watcher: Watcher | None = None, resume_from: Path | None = None, **agent: object
) -> SegmentResult:
    """One segment of the small run."""
    asked = request(**agent)
    return train_segment(asked, *data(asked), spool, resume_from, watcher or Watcher())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SegmentResult, Watcher]:
    """The whole run in one segment."""
    watcher = Watcher()
    return segment(tmp_path_factory.mktemp("undisturbed"), watcher), watcher


def test_whole_run(undisturbed: tuple[SegmentResult, Watcher]) -> None:
    """Rounded up to whole rollouts, with a checkpoint after the last update, and validation in plain numbers."""
    result, watcher = undisturbed
    assert result.finished
    assert result.steps == 4_096
    assert watcher.checkpoints[-1] == (result.checkpoint, 4_096, result.sha256)
    assert len(watcher.points) == 16
    bars = data(request())[1].bounds.validation
    assert result.validation["validation/bars"] <= bars.last - bars.first - 3
    assert result.validation["validation/total_return_fraction"] > -1.0
    assert all(total == 4_096 for _, total in watcher.progress)


def test_checkpoints_come_at_rollout_ends_and_the_spool_is_bounded(undisturbed: tuple[SegmentResult, Watcher]) -> None:
    """At the first rollout end after each 700 steps and at the end; the newest three stay."""
    result, watcher = undisturbed
    steps = [step for _, step, _ in watcher.checkpoints]
    assert steps == [768, 1536, 2304, 2816, 3584, 4096]
    assert sorted(result.checkpoint.parent.iterdir()) == sorted(path for path, _, _ in watcher.checkpoints[-3:])


def test_default_is_about_twenty_checkpoints(tmp_path: Path) -> None:
    """Without a setting, one at every twentieth of the run."""
    watcher = Watcher()
    small = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}
    segment(tmp_path, watcher, checkpoint_every_timesteps=None, total_timesteps=1_600, hyperparameters=small)
    assert len(watcher.checkpoints) == 20


def test_curves_have_their_names(undisturbed: tuple[SegmentResult, Watcher]) -> None:
    """SB3's curves and the family's four, one point for each update."""
    points = {point.name: point for point in undisturbed[1].points[-1]}
    expected = "reward episode_length episode_return cumulative_profit rollout/ep_rew_mean rollout/ep_len_mean time/fps"
    assert {*expected.split(), "train/loss", "train/value_loss", "train/approx_kl"} <= set(points)
    assert {point.step for point in points.values()} == {4_096}
    assert 0 < points["episode_length"].value <= 60
    assert points["train/learning_rate"].value == pytest.approx(1e-5)
    assert points["train/clip_range"].value == pytest.approx(0.3 - 0.2 * 4_096 / 8_000)


def test_stop_and_resume_gives_the_same_bytes(undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path) -> None:
    """Told to stop it leaves a checkpoint where it is; from there the end is the same file."""
    first = segment(tmp_path / "first", Watcher(stop_after_rollouts=5))
    assert (first.finished, first.steps, first.validation) == (False, 5 * 256, {})
    last = segment(tmp_path / "second", resume_from=first.checkpoint)
    assert last.sha256 == undisturbed[0].sha256
    assert last.validation == undisturbed[0].validation


def test_resume_from_the_last_checkpoint_has_nothing_to_train(
    undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path
) -> None:
    """A crash after the last checkpoint: the same checkpoint again, and the validation."""
    watcher = Watcher()
    result = segment(tmp_path, watcher, undisturbed[0].checkpoint)
    assert (result.finished, result.sha256, watcher.points) == (True, undisturbed[0].sha256, [])
    assert result.validation == undisturbed[0].validation


def test_damaged_checkpoint_is_refused(undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path) -> None:
    """A torn file, and a whole one of a run with another seed."""
    torn = tmp_path / "torn.zip"
    torn.write_bytes(undisturbed[0].checkpoint.read_bytes()[:-100])
    with pytest.raises(ArtifactDamaged, match=r"torn\.zip"):
        segment(tmp_path / "spool", resume_from=torn)
    with pytest.raises(ResumeImpossible, match="belongs to request"):
        segment(tmp_path / "spool", resume_from=undisturbed[0].checkpoint, seed=6)


def test_what_a_checkpoint_belongs_to_keeps_its_digest() -> None:
    """The digest of a run without a parent, as it was before runs could have one: old checkpoints can be resumed."""
    asked = request()
    assert owner_digest(asked, data(asked)[1]) == "4a824fb2a8e8ca79a11e4044a480603cef68c52afde5dd530b6d3b29f15cc2f0"


def test_twice_half_is_the_whole(undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path) -> None:
    """Schedules depend on steps and horizon alone: weights after half of the run are those of a run of half its length.

    With that a run can be continued later as if it had been longer from the start.
    """
    horizon = {"schedule": "linear", "start": 1e-3, "end": 1e-5, "horizon_timesteps": 4_096}
    half = segment(
        tmp_path, total_timesteps=2_304, hyperparameters=AGENT["hyperparameters"] | {"learning_rate": horizon}
    )
    [(path, _, _)] = [entry for entry in undisturbed[1].checkpoints if entry[1] == 3_584]
    whole_at_half = segment(tmp_path / "stopped", Watcher(stop_after_rollouts=9))
    assert path.exists()
    assert whole_at_half.steps == half.steps == 2_304
    mine, theirs = read_policy(half.checkpoint), read_policy(whole_at_half.checkpoint)
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


class Poisoned(BaseTradingEnv):
    """Its reward is NaN at one row."""

    def reward(self, bar: int, log_return: float) -> float:
        return float("nan") if bar == 700 else log_return


def test_reward_that_is_not_a_number_ends_training(tmp_path: Path) -> None:
    """One error that says what, where and at which step."""
    asked = request()
    with pytest.raises(TrainingDiverged, match=r"diverged at step \d+: the reward of environment \d at row 700 is nan"):
        train_segment(asked, *data(asked), tmp_path, None, Watcher(), Poisoned)


def test_divergence_ends_training(tmp_path: Path) -> None:
    """A learning rate beyond reason: the loss or the weights leave the numbers, and the error says so."""
    wild = AGENT["hyperparameters"] | {"learning_rate": 1e30, "max_grad_norm": 1e30}
    with pytest.raises(
        TrainingDiverged, match=r"diverged at step \d+: (train/\w+ is|the policy's weights are not)"
    ) as e:
        segment(tmp_path, hyperparameters=wild)
    assert e.value.step > 0
    assert e.value.failure.kind == "training_error"


def test_fingerprint_names_what_matters() -> None:
    """Versions and processor are there, and threads and device are the agent's."""
    found = fingerprint(request(torch_threads=3).agent)
    assert found.torch_threads == 3
    assert found.device == "cpu"
    assert all(found.model_dump().values())
    assert found.differences(fingerprint(request().agent)) == ("torch_threads: 3 / 1",)


@pytest.mark.parametrize("kill", ["after_rollout", "after_checkpoint", "at_any_step", "at_any_moment"])
def test_killed_and_resumed_ends_with_the_same_bytes(
    kill: str, undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path
) -> None:
    """SIGKILL between rollout and checkpoint, right after one, within rollouts, and at any time; then the same file."""
    output = subprocess.run(
        [sys.executable, __file__, kill, str(tmp_path)], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    report = json.loads(output)
    assert report["sha256"] == undisturbed[0].sha256
    # a machine may be so fast that the run ends before its moment comes
    assert report["kills"] >= (1 if kill == "at_any_moment" else KILLS)


KILLS = 4


class Mortal(TradingEnv):
    """Kills its process after so many steps."""

    steps_left = 0

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        Mortal.steps_left -= 1
        if Mortal.steps_left == 0:
            _die(0)
        return super().step(action)


def _die(_step: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(kill: str, spool: Path, attempt: int, started: int) -> None:
    """Train on from the newest checkpoint, and die on the way if this attempt is to."""
    watcher, env_class = Watcher(), TradingEnv
    if attempt < KILLS:
        if kill == "after_rollout":
            watcher.at_rollout = lambda step: _die(step) if step >= 900 * (attempt + 1) else None
        elif kill == "after_checkpoint":
            watcher.at_checkpoint = _die
        elif kill == "at_any_step":
            # at most 4 x 1,000 of 4,096: the last attempt has something left to do
            Mortal.steps_left, env_class = random.SystemRandom().randint(300, 1_000), Mortal
        else:
            watcher.at_rollout = lambda _step: os.write(started, b"r")
    asked = request()
    train_segment(asked, *data(asked), spool, max(spool.glob("*.zip"), default=None), watcher, env_class)


def _main(kill: str, spool: Path) -> None:
    """Fork a child, and again where it was killed, until one ends by itself."""
    pin_torch(request().agent)
    kills = 0
    for attempt in range(KILLS + 1):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(kill, spool, attempt, writer)
            os._exit(0)
        os.close(writer)
        if kill == "at_any_moment" and os.read(reader, 1):
            time.sleep(random.SystemRandom().uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(reader)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    sha256 = hashlib.sha256(max(spool.glob("*.zip")).read_bytes()).hexdigest()
    print(json.dumps({"sha256": sha256, "kills": kills}))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
