"""A parent is trained, and children of it, by the segment itself; what goes on is said by the domain's own rule."""

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from gymnasium import spaces
from stable_baselines3 import PPO

from training_fsm.core.checkpoint import read_policy
from training_fsm.core.fingerprint import fingerprint
from training_fsm.core.market_data import normalisation_of
from training_fsm.core.split_bounds import split_bounds
from training_fsm.core.trading_env import Observation, TradingEnv
from training_fsm.core.training_loop import CurvePoint
from training_fsm.core.training_segment import Ancestor, SegmentResult, train_segment
from training_fsm.domain.continuation import inheritance
from training_fsm.domain.errors import ArtifactDamaged, ParentUnfit, ResumeImpossible
from training_fsm.domain.facts import Artifact, Gaps, ModelRef, StoredData
from training_fsm.domain.lineage import Parent, TrainingRecord
from training_fsm.domain.request import TrainingRequest

HALF = 1_024
ROLLOUT = 128
HYPERPARAMETERS = {
    "n_steps": 64,
    "batch_size": 32,
    "n_epochs": 2,
    "learning_rate": {"schedule": "linear", "start": 1e-3, "end": 1e-5, "horizon_timesteps": 3 * HALF},
    "clip_range": {"schedule": "linear", "start": 0.3, "end": 0.1, "horizon_timesteps": 2 * HALF},
}
AGENT = {
    "seed": 5,
    "total_timesteps": HALF,
    "n_envs": 2,
    "net_arch": [8, 8],
    "checkpoint_every_timesteps": 300,
    "hyperparameters": HYPERPARAMETERS,
}


def request(mode: str = "continue", **agent: object) -> TrainingRequest:
    """A small run whose fills draw random numbers."""
    return TrainingRequest.model_validate(
        {
            "mode": mode,
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
                "window": 2,
                "episode_bars": 30,
            },
            "agent": AGENT | agent,
        }
    )


def data(
    asked: TrainingRequest, walk: int = 8, columns: tuple[str, ...] = ("b", "a")
) -> tuple[pd.DataFrame, StoredData]:
    """A random walk as a frozen frame."""
    generator, rows = np.random.default_rng(walk), 800
    frame = pd.DataFrame({"event_timestamp": pd.date_range("2020-01-01", periods=rows, freq="4h", tz="UTC")})
    for column in columns:
        frame[column] = generator.normal(3.0, 2.0, rows).astype(np.float32)
    frame["price"] = (100 * np.exp(np.cumsum(generator.normal(0, 0.005, rows)))).astype(np.float32)
    frame["atr"] = np.float32(0.5)
    bounds = split_bounds(pd.DatetimeIndex(frame["event_timestamp"]), asked.split, asked.embargo_bars)
    return frame, StoredData(
        artifact=Artifact(uri="memory:", sha256="0" * 64, size_bytes=0),
        digest=f"{walk:064x}",
        rows=rows,
        warmup_rows=0,
        gaps=Gaps(count=0, longest_bars=0, longest_after=None),
        periods_per_year=2191.5,
        observation_columns=columns,
        bounds=bounds,
        normalisation=normalisation_of(frame.iloc[: bounds.training.last], columns),
    )


@dataclass
class Watcher:
    """Keeps what it is told, and can stop the segment."""

    points: list[Sequence[CurvePoint]] = field(default_factory=list)
    checkpoints: list[tuple[Path, int, str]] = field(default_factory=list)
    totals: set[int] = field(default_factory=set)
    stop_after_rollouts: int | None = None

    def on_progress(self, step: int, total: int, steps_per_s: float, metrics: dict[str, float]) -> None:
        self.totals.add(total)

    def on_rollout(self, points: Sequence[CurvePoint]) -> None:
        self.points.append(points)

    def on_checkpoint(self, path: Path, step: int, sha256: str) -> None:
        self.checkpoints.append((path, step, sha256))

    def should_stop(self) -> bool:
        return self.stop_after_rollouts is not None and len(self.points) >= self.stop_after_rollouts

    def curve(self, name: str) -> list[float]:
        return [point.value for points in self.points for point in points if point.name == name]


class Recorder(TradingEnv):
    """Notes the row on which every step was taken, in the order of the steps."""

    bars: ClassVar[list[int]] = []

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        Recorder.bars.append(self.bar)
        return super().step(action)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parent]:
    """A registered model's last checkpoint, and what is known of it."""
    asked = request("from_scratch")
    frame, frozen = data(asked)
    result = train_segment(asked, frame, frozen, tmp_path_factory.mktemp("parent"), None, Watcher())
    return result.checkpoint, parent_of(asked, frozen, result)


def parent_of(asked: TrainingRequest, frozen: StoredData, result: SegmentResult) -> Parent:
    """The parent that a finished segment makes."""
    checkpoint = Artifact(uri="memory:", sha256=result.sha256, size_bytes=result.checkpoint.stat().st_size)
    record = TrainingRecord(
        run_id="parent-run",
        request=asked,
        feature_config=asked.features.versioned(datetime(2026, 11, 24, tzinfo=UTC)),
        data=frozen,
        checkpoint=checkpoint,
        steps=result.steps,
        fingerprint=fingerprint(asked.agent),
        trained_until=frozen.bounds.training.end,
        parent=None,
        root=None,
        depth=0,
    )
    model = ModelRef(name="noise-ppo", version=1)
    return Parent(
        kind="training_fsm", model=model, digest="d" * 64, checkpoint=checkpoint, steps=result.steps, record=record
    )


def child(
    parent: tuple[Path, Parent],
    spool: Path,
    watcher: Watcher | None = None,
    resume_from: Path | None = None,
    walk: int = 8,
    env_class: type[TradingEnv] = TradingEnv,
    **agent: object,
) -> SegmentResult:
    """One segment of a continued run."""
    asked = request(**agent)
    frame, frozen = data(asked, walk)
    ancestor = Ancestor(*parent, inheritance(parent[1], asked, frozen))
    return train_segment(asked, frame, frozen, spool, resume_from, watcher or Watcher(), env_class, ancestor)


def members(path: Path) -> dict[str, bytes]:
    """A checkpoint's content without the digest of the run that it belongs to."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    state = json.loads(content["state.json"])
    del state["request_digest"]
    return content | {"state.json": json.dumps(state).encode()}


def state(path: Path) -> dict[str, float]:
    """A checkpoint's counters."""
    counters: dict[str, float] = json.loads(members(path)["state.json"])
    return counters


def moment_steps(path: Path) -> set[float]:
    """How often Adam has moved each parameter."""
    moments = safetensors.numpy.load(members(path)["optimizer.safetensors"])
    return {float(value) for name, value in moments.items() if name.endswith(".step")}


def updates(steps: int) -> int:
    """Minibatches in so many environment steps."""
    return steps // ROLLOUT * 2 * ROLLOUT // 32


@pytest.fixture(scope="module")
def undisturbed(parent: tuple[Path, Parent], tmp_path_factory: pytest.TempPathFactory) -> tuple[SegmentResult, Watcher]:
    """The parent continued, with nothing changed, in one segment."""
    watcher = Watcher()
    return child(parent, tmp_path_factory.mktemp("child"), watcher), watcher


def test_half_continued_by_half_is_the_whole(undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path) -> None:
    """N steps continued by N end with the bytes of 2N at once: weights, optimizer, arrays, and counters."""
    asked = request("from_scratch", total_timesteps=2 * HALF)
    whole = train_segment(asked, *data(asked), tmp_path, None, Watcher())
    result = undisturbed[0]
    assert (result.finished, result.steps, whole.steps) == (True, 2 * HALF, 2 * HALF)
    assert members(result.checkpoint) == members(whole.checkpoint)
    assert result.sha256 != whole.sha256  # they belong to different runs
    assert result.validation == whole.validation


def test_counters_go_on_from_the_parents(undisturbed: tuple[SegmentResult, Watcher]) -> None:
    """Steps of curves, progress and checkpoints are absolute; the cadence counts this run's own steps."""
    watcher = undisturbed[1]
    assert [points[0].step for points in watcher.points] == list(range(HALF + ROLLOUT, 2 * HALF + 1, ROLLOUT))
    assert watcher.totals <= {2 * HALF}
    assert [step - HALF for _, step, _ in watcher.checkpoints] == [384, 640, 1024]


@pytest.mark.parametrize("rollouts", [1, 5])
def test_stopped_child_resumes_to_the_same_bytes(
    rollouts: int, parent: tuple[Path, Parent], undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path
) -> None:
    """Its own checkpoint wins over the parent's, whose file may be gone by then."""
    first = child(parent, tmp_path / "first", Watcher(stop_after_rollouts=rollouts))
    assert (first.finished, first.steps) == (False, HALF + rollouts * ROLLOUT)
    watcher = Watcher()
    gone = (tmp_path / "gone.zip", parent[1])
    assert child(gone, tmp_path / "second", watcher, first.checkpoint).sha256 == undisturbed[0].sha256
    later = [step for _, step, _ in undisturbed[1].checkpoints if step > first.steps]
    assert [step for _, step, _ in watcher.checkpoints] == later


class DiedError(Exception):
    """The process is gone."""


class Mortal(TradingEnv):
    """Dies after so many steps, wherever that is in a rollout."""

    steps_left = 0

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        Mortal.steps_left -= 1
        if Mortal.steps_left < 0:
            raise DiedError
        return super().step(action)


@pytest.mark.parametrize("steps_left", [50, 500, 900])
def test_child_that_dies_goes_on_from_its_last_checkpoint(
    steps_left: int, parent: tuple[Path, Parent], undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path
) -> None:
    """Before its first checkpoint it begins from the parent again; after it, from there."""
    Mortal.steps_left = steps_left
    with pytest.raises(DiedError):
        child(parent, tmp_path, env_class=Mortal)
    newest = max(tmp_path.glob("*.zip"), default=None)
    assert (newest is None) == (steps_left < 384)
    assert child(parent, tmp_path, resume_from=newest).sha256 == undisturbed[0].sha256


def test_child_of_a_child_is_the_whole(
    parent: tuple[Path, Parent], undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path
) -> None:
    """Three runs in a row end as one of three times the length."""
    asked, result = request(), undisturbed[0]
    second = (result.checkpoint, parent_of(asked, data(asked)[1], result))
    whole = request("from_scratch", total_timesteps=3 * HALF)
    expected = train_segment(whole, *data(whole), tmp_path / "whole", None, Watcher()).checkpoint
    assert members(child(second, tmp_path / "third").checkpoint) == members(expected)


def first_bars(run: Callable[[], object], n_envs: int = 2) -> list[int]:
    """The rows on which the environments took their first steps."""
    Recorder.bars.clear()
    run()
    return Recorder.bars[:n_envs]


STILL = HYPERPARAMETERS | {"learning_rate": 0.0}
"""Without a learning rate the weights at the end are those of the beginning."""


def test_with_other_data_all_but_the_environments_goes_on(parent: tuple[Path, Parent], tmp_path: Path) -> None:
    """Weights, Adam's moments, counters and reward statistics are the parent's, and go on; episodes begin anew."""
    path, known = parent
    watcher = Watcher()
    result = child(parent, tmp_path, watcher, walk=9, hyperparameters=STILL)
    mine, theirs = read_policy(result.checkpoint), read_policy(path)
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    assert moment_steps(result.checkpoint) == {updates(2 * HALF)}
    assert state(result.checkpoint)["n_updates"] == 2 * state(path)["n_updates"]
    assert state(result.checkpoint)["reward_count"] == pytest.approx(state(path)["reward_count"] + HALF, rel=1e-9)
    assert result.steps == known.steps + HALF
    # 2 x 64 steps after a reset hold two whole episodes each; carried records would be more
    assert len(json.loads(members(watcher.checkpoints[0][0])["state.json"])["episodes"]) == 3 * ROLLOUT // 2 // 30 * 2


def test_reset_environments_do_not_repeat_the_parents_windows(parent: tuple[Path, Parent], tmp_path: Path) -> None:
    """With the same seed and other prices: other windows than the parent began with, the same ones each time."""
    asked = request("from_scratch")
    one = Watcher(stop_after_rollouts=1)
    parents = first_bars(lambda: train_segment(asked, *data(asked), tmp_path / "p", None, one, Recorder))
    begun = [
        first_bars(lambda n=n: child(parent, tmp_path / str(n), Watcher(stop_after_rollouts=1), None, 9, Recorder))
        for n in range(2)
    ]
    assert begun[0] == begun[1]
    assert set(begun[0]).isdisjoint(parents)
    unchanged = first_bars(lambda: child(parent, tmp_path / "c", Watcher(stop_after_rollouts=1), None, 8, Recorder))
    last = json.loads(members(parent[0])["state.json"])["environments"]
    assert unchanged == [env["bar"] for env in last]


def generators(path: Path) -> tuple[bytes, ...]:
    """States of python's, numpy's and torch's generators in a checkpoint."""
    with np.load(io.BytesIO(members(path)["state.npz"]), allow_pickle=False) as arrays:
        return tuple(arrays[f"{name}_generator"].tobytes() for name in ("python", "numpy", "torch"))


def test_with_another_seed_generators_and_environments_begin_anew(parent: tuple[Path, Parent], tmp_path: Path) -> None:
    """Python's generator, which training does not draw from, shows which seed it had; weights still go on."""
    other = child(parent, tmp_path / "a", seed=6, hyperparameters=STILL)
    same = child(parent, tmp_path / "b", walk=9, hyperparameters=STILL)
    assert generators(same.checkpoint)[0] == generators(parent[0])[0]
    assert all(a != b for a, b in zip(generators(other.checkpoint), generators(parent[0]), strict=True))
    mine, theirs = read_policy(other.checkpoint), read_policy(parent[0])
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    again = child(parent, tmp_path / "c", seed=6, hyperparameters=STILL)
    assert again.sha256 == other.sha256


def test_with_another_number_of_environments(parent: tuple[Path, Parent], tmp_path: Path) -> None:
    """Three instead of two, rollouts that do not divide the parent's steps, and a resume that changes nothing."""
    settings: dict[str, object] = {"n_envs": 3, "total_timesteps": 900}
    watcher = Watcher()
    result = child(parent, tmp_path / "a", watcher, **settings)
    assert [step - HALF for _, step, _ in watcher.checkpoints] == [384, 768, 960]
    stopped = child(parent, tmp_path / "b", Watcher(stop_after_rollouts=3), **settings)
    resumed = Watcher()
    assert child(parent, tmp_path / "c", resumed, stopped.checkpoint, **settings).sha256 == result.sha256
    assert [step - HALF for _, step, _ in resumed.checkpoints] == [768, 960]


def test_schedule_without_a_horizon_is_this_runs_own(parent: tuple[Path, Parent], tmp_path: Path) -> None:
    """One with a horizon sees all steps, one without begins again and ends with the run."""
    watcher = Watcher()
    own = HYPERPARAMETERS | {"learning_rate": {"schedule": "linear", "start": 1e-3, "end": 1e-4}}
    child(parent, tmp_path, watcher, hyperparameters=own)
    assert watcher.curve("train/learning_rate") == pytest.approx(np.linspace(1e-3, 1e-4, 9)[1:])
    assert watcher.curve("train/clip_range") == pytest.approx(np.linspace(0.3, 0.1, 17)[9:])


def test_weights_of_other_shapes_are_refused(parent: tuple[Path, Parent], tmp_path: Path) -> None:
    """Other observation columns, or another net: which weights, and both shapes."""
    path, known = parent
    asked = request()
    frame, frozen = data(asked, columns=("b", "a", "c"))
    ancestor = Ancestor(path, known, inheritance(known, asked, frozen.model_copy(update={"digest": "f" * 64})))
    expected = r"mlp_extractor\.policy_net\.0\.weight: expected \(8, 10\), got \(8, 8\); mlp_extractor\.value_net\.0"
    with pytest.raises(ParentUnfit, match=expected) as error:
        train_segment(asked, frame, frozen, tmp_path, None, Watcher(), ancestor=ancestor)
    assert error.value.failure.kind == "parent_unfit"
    with pytest.raises(ParentUnfit, match=r"policy_net\.2\.weight: expected None, got \(8, 8\)"):
        child(parent, tmp_path, net_arch=[8])
    with pytest.raises(ParentUnfit, match=r"expected \(16, 8\), got \(8, 8\).*; and 7 more"):
        child(parent, tmp_path, net_arch=[16, 16])
    assert list(tmp_path.iterdir()) == []


def test_altered_parent_is_refused(parent: tuple[Path, Parent], tmp_path: Path) -> None:
    """Torn, another whole checkpoint than the record's, gone, and a record that says other steps."""
    path, known = parent
    torn = tmp_path / "torn.zip"
    torn.write_bytes(path.read_bytes()[:-10])
    for damaged in (torn, tmp_path / "gone.zip"):
        with pytest.raises(ArtifactDamaged, match=damaged.name):
            child((damaged, known), tmp_path / "spool")
    other = known.model_copy(update={"checkpoint": known.checkpoint.model_copy(update={"sha256": "b" * 64})})
    with pytest.raises(ArtifactDamaged, match="expected bbbb"):
        child((path, other), tmp_path / "spool")
    with pytest.raises(ParentUnfit, match="at step 1024, its record says 1000"):
        child((path, known.model_copy(update={"steps": 1_000})), tmp_path / "spool")


def test_checkpoint_of_another_parents_child_is_no_resume(
    parent: tuple[Path, Parent], undisturbed: tuple[SegmentResult, Watcher], tmp_path: Path
) -> None:
    """What a checkpoint belongs to includes the parent's checkpoint; a run from scratch is none of them."""
    path, known = parent
    other = known.model_copy(update={"checkpoint": known.checkpoint.model_copy(update={"sha256": "b" * 64})})
    with pytest.raises(ResumeImpossible, match="belongs to request"):
        child((path, other), tmp_path, resume_from=undisturbed[0].checkpoint)
    with pytest.raises(ResumeImpossible, match="belongs to request"):
        child(parent, tmp_path, resume_from=path)


class Toy(gymnasium.Env[Observation, np.int64]):
    """Noise of the shape that the small run's environment gives."""

    observation_space = spaces.Box(-10.0, 10.0, (8,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Observation, dict[str, object]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=8).astype(np.float32), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        noise = self.np_random.normal(size=8).astype(np.float32)
        return noise, float(noise[0]), bool(noise[1] > 1.0), False, {}


@pytest.mark.parametrize(("kind", "steps"), [("sb3_weights", 0), ("sb3_whole", 192)])
def test_child_of_a_plain_zip(kind: str, steps: int, tmp_path: Path) -> None:
    """Weights alone begin at step 0 with a new optimizer; a whole one goes on; both resume to the same bytes."""
    theirs = PPO("MlpPolicy", Toy(), 1e-3, 64, 32, 2, policy_kwargs={"net_arch": [8, 8]}, seed=3, device="cpu")
    theirs.learn(192)
    path = tmp_path / "theirs.zip"
    theirs.save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    zipped = Artifact(uri="memory:", sha256=sha256, size_bytes=path.stat().st_size)
    parent = (
        path,
        Parent.model_validate(
            {"kind": kind, "model": None, "digest": sha256, "checkpoint": zipped, "steps": steps, "record": None}
        ),
    )
    result = child(parent, tmp_path / "a", hyperparameters=STILL)
    assert result.steps == steps + HALF
    mine = read_policy(result.checkpoint)
    assert all(np.array_equal(mine[name], value.numpy()) for name, value in theirs.policy.state_dict().items())
    # nothing of agent.seed's own sequence is drawn again, so that the noise is not that of the parent's first rollouts
    assert generators(result.checkpoint)[0] != np.asarray(random.Random(5).getstate()[1], dtype=np.uint32).tobytes()
    theirs_moved = 192 // 64 * 2 * 64 // 32 if steps else 0
    assert moment_steps(result.checkpoint) == {theirs_moved + updates(HALF)}
    assert state(result.checkpoint)["n_updates"] == (theirs._n_updates if steps else 0) + HALF // ROLLOUT * 2
    stopped = child(parent, tmp_path / "b", Watcher(stop_after_rollouts=3), hyperparameters=STILL)
    path.unlink()
    resumed = child(parent, tmp_path / "c", resume_from=stopped.checkpoint, hyperparameters=STILL)
    assert resumed.sha256 == result.sha256
