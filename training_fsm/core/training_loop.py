"""Rollouts and updates, one after the other; between two of them the agent's state is whole."""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from training_fsm.core.trading_vec_env import RewardNotFinite
from training_fsm.domain.errors import TrainingDiverged

_LOSSES = ("train/loss", "train/policy_gradient_loss", "train/value_loss", "train/entropy_loss")
_PROGRESS_EVERY_S = 0.2


class CurvePoint(NamedTuple):
    """One point of a training curve, by environment steps done."""

    name: str
    value: float
    step: int


def rollouts(agent: PPO, until_timesteps: int, on_steps: Callable[[int, float], None]) -> Iterator[list[CurvePoint]]:
    """Collect a rollout and learn from it, again and again, until so many environment steps are done.

    Gives the curves' points after each update. `on_steps(steps done, steps per second)` is called at most five times a
    second. Raises TrainingDiverged.
    """
    agent.set_logger(Logger(folder=None, output_formats=[]))
    progress = _Progress(on_steps, agent.num_timesteps)
    while agent.num_timesteps < until_timesteps:
        before, started = agent.num_timesteps, time.perf_counter()
        try:
            # one rollout a call, SB3 rounds up to it; its log is read below, and dumped at no interval it could reach
            agent.learn(1, callback=progress, log_interval=2, reset_num_timesteps=False)
        except RewardNotFinite as error:
            raise TrainingDiverged(agent.num_timesteps, str(error)) from error
        except (ValueError, RuntimeError) as error:
            # sampling refuses NaN with one of these; anything else is not ours to explain
            if _finite_weights(agent):
                raise
            raise TrainingDiverged(agent.num_timesteps, "the policy's weights are not finite") from error
        _check(agent)
        yield _points(agent, (agent.num_timesteps - before) / (time.perf_counter() - started))


class _Progress(BaseCallback):
    def __init__(self, on_steps: Callable[[int, float], None], first_step: int) -> None:
        super().__init__()
        self._on_steps = on_steps
        self._last_s, self._last_step = time.monotonic(), first_step

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now - self._last_s >= _PROGRESS_EVERY_S:
            self._on_steps(self.num_timesteps, (self.num_timesteps - self._last_step) / (now - self._last_s))
            self._last_s, self._last_step = now, self.num_timesteps
        return True


def _check(agent: PPO) -> None:
    for name in _LOSSES:
        value = float(agent.logger.name_to_value[name])
        if not math.isfinite(value):
            raise TrainingDiverged(agent.num_timesteps, f"{name} is {value}")
    if not _finite_weights(agent):
        raise TrainingDiverged(agent.num_timesteps, "the policy's weights are not finite")


def _finite_weights(agent: PPO) -> bool:
    return all(bool(torch.isfinite(weights).all()) for weights in agent.policy.parameters())


def _points(agent: PPO, steps_per_s: float) -> list[CurvePoint]:
    """SB3's curves under its names, and the family's four under theirs, as means over the last episodes."""
    values = {name: float(value) for name, value in agent.logger.name_to_value.items()}
    agent.logger.name_to_value.clear()
    episodes = list(agent.ep_info_buffer or ())
    if episodes:
        returns, lengths = [e["r"] for e in episodes], [e["l"] for e in episodes]
        episode_return, episode_length = float(np.mean(returns)), float(np.mean(lengths))
        values |= {
            "rollout/ep_rew_mean": episode_return,
            "rollout/ep_len_mean": episode_length,
            "reward": float(np.sum(returns) / np.sum(lengths)),
            "episode_return": episode_return,
            "episode_length": episode_length,
            "cumulative_profit": float(np.mean([e["cumulative_profit"] for e in episodes])),
        }
    values["time/fps"] = steps_per_s
    return [CurvePoint(name, value, agent.num_timesteps) for name, value in values.items() if math.isfinite(value)]
