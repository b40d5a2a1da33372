"""One segment of a run's training: from the start or a checkpoint, to the end or until told to stop."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed

from training_fsm.core.agent import greedy_action, make_agent, pin_torch, vectorise
from training_fsm.core.checkpoint import load_checkpoint, load_parent, save_checkpoint
from training_fsm.core.market_data import MarketData, market_data
from training_fsm.core.sb3_zip import load_zip
from training_fsm.core.trading_env import BaseTradingEnv, TradingEnv
from training_fsm.core.training_loop import CurvePoint, rollouts
from training_fsm.core.training_state import layers
from training_fsm.domain.facts import FrozenData, PartBounds
from training_fsm.domain.hyperparameters import AgentSettings
from training_fsm.domain.lineage import Inheritance, Parent
from training_fsm.domain.request import TrainingRequest

KEPT_CHECKPOINTS = 3
"""So many of the newest stay in the spool."""
CHECKPOINTS_PER_RUN = 20


class SegmentObserver(Protocol):
    """Whoever watches a segment. Called from the training thread: answer quickly."""

    def on_progress(self, step: int, total: int, steps_per_s: float, metrics: dict[str, float]) -> None:
        """Environment steps done of all; metrics are the last rollout's. At most five times a second."""
        ...

    def on_rollout(self, points: Sequence[CurvePoint]) -> None:
        """Points of the training curves, after each update."""
        ...

    def on_checkpoint(self, path: Path, step: int, sha256: str) -> None:
        """A checkpoint is on disk; two later ones may come before this file is removed."""
        ...

    def should_stop(self) -> bool:
        """Asked after each update; True leaves a checkpoint and ends the segment."""
        ...


@dataclass(frozen=True, slots=True)
class Ancestor:
    """What a run continues: the parent's checkpoint or zip as a local file, and which parts of it go on."""

    checkpoint: Path | None
    """Not needed, and None, where the run resumes from a checkpoint of its own."""
    parent: Parent
    inheritance: Inheritance


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """Where the segment ended: its last checkpoint, and how the agent does on the validation part."""

    finished: bool
    """False where it was told to stop before the last update."""
    checkpoint: Path
    sha256: str
    steps: int
    validation: dict[str, float]
    """`validation/…`, of one deterministic pass; empty unless finished."""


def train_segment(
    request: TrainingRequest,
    frame: pd.DataFrame,
    frozen: FrozenData,
    spool: Path,
    resume_from: Path | None,
    callbacks: SegmentObserver,
    env_class: type[BaseTradingEnv] = TradingEnv,
    ancestor: Ancestor | None = None,
    last_step: int | None = None,
) -> SegmentResult:
    """Train on the frozen frame until the request's last update, or to `last_step` where a run was extended.

    With an ancestor the steps are counted on from the parent's; its file is read where there is nothing to resume from.

    `frame` has one row per bar, in order, with `event_timestamp` and the columns that the request and `frozen` name.
    A segment that resumes from any checkpoint of the run ends with the same bytes as one that never stopped.
    Checkpoints go into `spool`, which is this segment's own; the newest KEPT_CHECKPOINTS stay.

    Raises DataUnusable, DeviceUnavailable, TrainingDiverged, for `resume_from` ArtifactDamaged and ResumeImpossible,
    and for the ancestor ArtifactDamaged and ParentUnfit.
    """
    settings = request.agent
    pin_torch(settings)
    training = _part(request, frame, frozen, frozen.bounds.training)
    validation = _part(request, frame, frozen, frozen.bounds.validation)
    envs = [env_class(training, request.env) for _ in range(settings.n_envs)]
    validation_env = env_class(validation, request.env, single_pass=True)
    parent = None if ancestor is None else ancestor.parent
    first_step = 0 if parent is None else parent.steps
    agent = make_agent(settings, vectorise(envs, settings), first_step)
    digest = owner_digest(request, frozen, parent)
    if resume_from is not None:
        load_checkpoint(resume_from, agent, digest)
    elif ancestor is not None and ancestor.checkpoint is not None:
        _inherit(agent, ancestor, ancestor.checkpoint, settings)
    keeper = _CheckpointKeeper(spool, digest, callbacks.on_checkpoint, agent.num_timesteps)

    total = last_step if last_step is not None else first_step + settings.whole_timesteps
    finished = _train(agent, settings, (first_step, total), keeper, callbacks)
    last = keeper.save(agent)
    return SegmentResult(
        finished=finished,
        checkpoint=last.path,
        sha256=last.sha256,
        steps=agent.num_timesteps,
        validation=validation_metrics(agent, validation_env, settings.seed) if finished else {},
    )


def owner_digest(request: TrainingRequest, frozen: FrozenData, parent: Parent | None = None) -> str:
    """sha256 over what a checkpoint belongs to: the request, the frozen data, and the parent's checkpoint if any.

    Defaults are left out, so that a field added later, with a default that changes nothing, changes no digest.
    """
    asked = request.model_dump(mode="json", exclude_defaults=True)
    begun_from = [] if parent is None else [parent.checkpoint.sha256]
    text = json.dumps([asked, frozen.digest, *begun_from], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def validation_metrics(agent: PPO, env: BaseTradingEnv, seed: int) -> dict[str, float]:
    """One pass over the environment with the most probable actions; fractions, bars and account currency."""
    observation, _ = env.reset(seed=seed)
    account, bars, in_position, worst, total_reward, ended = env.account, 0, 0, 0.0, 0.0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(greedy_action(agent, observation))
        ended = terminated or truncated
        bars += 1
        total_reward += reward
        in_position += account.position != 0
        worst = max(worst, account.drawdown)
    account.liquidate(env.bar)
    return {
        "validation/total_return_fraction": account.equity / env.config.start_balance - 1.0,
        "validation/max_drawdown_fraction": worst,
        "validation/reward": total_reward,
        "validation/trades": float(len(account.trades)),
        "validation/cost": account.cost_paid,
        "validation/bars": float(bars),
        "validation/time_in_position_fraction": in_position / bars,
    }


def _part(request: TrainingRequest, frame: pd.DataFrame, frozen: FrozenData, bounds: PartBounds) -> MarketData:
    rows = frame.iloc[bounds.first : bounds.last]
    return market_data(rows, request.data.columns, frozen.observation_columns, frozen.normalisation)


def _inherit(agent: PPO, ancestor: Ancestor, checkpoint: Path, settings: AgentSettings) -> None:
    parent, parts = ancestor.parent, frozenset(ancestor.inheritance.carried)
    load = load_parent if parent.kind == "training_fsm" else load_zip
    # agent.seed alone would give the windows and the noise of the parent's first rollouts again
    seed = int(np.random.SeedSequence((settings.seed, parent.steps)).generate_state(1)[0])
    if "generators" not in parts:
        set_random_seed(seed, using_cuda=settings.device != "cpu")
    if "environments" not in parts:
        layers(agent)[0].seed(seed)
    load(checkpoint, agent, parent, parts)


def _train(
    agent: PPO,
    settings: AgentSettings,
    steps: tuple[int, int],
    keeper: "_CheckpointKeeper",
    callbacks: SegmentObserver,
) -> bool:
    """Whether the last update is done; `steps` are the first and the last of the run."""
    first_step, total = steps
    every = settings.checkpoint_every_timesteps or -(-settings.whole_timesteps // CHECKPOINTS_PER_RUN)
    metrics: dict[str, float] = {}

    def on_steps(step: int, steps_per_s: float) -> None:
        callbacks.on_progress(step, total, steps_per_s, metrics)

    for points in rollouts(agent, total, on_steps):
        metrics = {point.name: point.value for point in points}
        callbacks.on_rollout(points)
        step = agent.num_timesteps
        if step >= total:
            break
        if callbacks.should_stop():
            return False
        # by the run's own steps alone: a resumed segment saves where an undisturbed one does
        done = step - first_step
        if done // every > (done - settings.rollout_timesteps) // every:
            keeper.save(agent)
    return True


@dataclass(frozen=True, slots=True)
class _Saved:
    path: Path
    step: int
    sha256: str


class _CheckpointKeeper:
    """Saves checkpoints into the spool and removes the oldest."""

    def __init__(
        self, spool: Path, digest: str, on_checkpoint: Callable[[Path, int, str], None], from_step: int
    ) -> None:
        self._spool, self._digest, self._on_checkpoint = spool, digest, on_checkpoint
        self._last: _Saved | None = None
        spool.mkdir(parents=True, exist_ok=True)
        for stale in [*spool.glob("checkpoint-*.zip.tmp"), *(p for p in self._stored() if _step(p) > from_step)]:
            stale.unlink()

    def save(self, agent: PPO) -> _Saved:
        """The agent's checkpoint at its step; saved once."""
        step = agent.num_timesteps
        if self._last is None or self._last.step != step:
            path = self._spool / f"checkpoint-{step:012d}.zip"
            self._last = _Saved(path, step, save_checkpoint(path, agent, self._digest))
            self._on_checkpoint(path, step, self._last.sha256)
            for old in self._stored()[:-KEPT_CHECKPOINTS]:
                old.unlink()
        return self._last

    def _stored(self) -> list[Path]:
        return sorted(self._spool.glob("checkpoint-*.zip"))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint-"))
