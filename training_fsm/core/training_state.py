"""What training depends on besides weights and optimizer, taken out of an agent and put back."""

import random
from collections import deque
from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from training_fsm.core.trading_vec_env import TradingVecEnv
from training_fsm.domain.lineage import Part
from training_fsm.domain.model import Model

Scalar = TypeVar("Scalar", bound=np.generic)
Arrays = dict[str, NDArray[np.generic]]

EVERY_PART: frozenset[Part] = frozenset(get_args(Part))


class EpisodeRecord(Model):
    """One episode in SB3's buffer of the last ones."""

    r: float
    l: int  # noqa: E741 - SB3's name
    cumulative_profit: float


class TrainingCounters(Model):
    """The part of the state that is readable: counters, environments, episode records."""

    format: Literal["training-fsm-checkpoint-1"] = "training-fsm-checkpoint-1"
    request_digest: str
    num_timesteps: int
    n_updates: int
    episode_num: int
    monitor_episodes: int
    reward_count: float
    """Weight of VecNormalize's running statistics."""
    python_gauss: float | None
    numpy_gauss: float
    numpy_has_gauss: int
    numpy_position: int
    learning_rate: float
    environments: list[dict[str, JsonValue]]
    episodes: list[EpisodeRecord]


def layers(agent: PPO) -> tuple[VecNormalize, VecMonitor, TradingVecEnv]:
    """The agent's environments with their two wrappers, outermost first."""
    normalise = agent.get_env()
    assert isinstance(normalise, VecNormalize)
    monitor = normalise.venv
    assert isinstance(monitor, VecMonitor)
    vector = monitor.venv
    assert isinstance(vector, TradingVecEnv)
    return normalise, monitor, vector


def counters_of(agent: PPO, request_digest: str) -> TrainingCounters:
    """The readable part of an agent's state."""
    normalise, monitor, vector = layers(agent)
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return TrainingCounters(
        request_digest=request_digest,
        num_timesteps=agent.num_timesteps,
        n_updates=agent._n_updates,
        episode_num=agent._episode_num,
        monitor_episodes=monitor.episode_count,
        reward_count=float(normalise.ret_rms.count),
        python_gauss=random.getstate()[2],
        numpy_gauss=float(numpy_state["gauss"]),
        numpy_has_gauss=int(numpy_state["has_gauss"]),
        numpy_position=int(numpy_state["state"]["pos"]),
        learning_rate=float(agent.policy.optimizer.param_groups[0]["lr"]),
        environments=[env.get_state() for env in vector.envs],
        # wall times of episodes are left out: equal state must have equal bytes
        episodes=[
            EpisodeRecord(r=float(episode["r"]), l=int(episode["l"]), cumulative_profit=episode["cumulative_profit"])
            for episode in agent.ep_info_buffer or ()
        ],
    )


def arrays_of(agent: PPO) -> Arrays:
    """The part of an agent's state that is arrays."""
    normalise, monitor, _ = layers(agent)
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    assert isinstance(agent._last_obs, np.ndarray)
    assert isinstance(agent._last_episode_starts, np.ndarray)
    assert isinstance(agent._last_original_obs, np.ndarray)
    assert isinstance(normalise.old_obs, np.ndarray)
    arrays: Arrays = {
        "python_generator": np.asarray(random.getstate()[1], dtype=np.uint32),
        "numpy_generator": numpy_state["state"]["key"],
        "torch_generator": torch.get_rng_state().numpy(),
        "last_obs": agent._last_obs,
        "last_episode_starts": agent._last_episode_starts,
        "last_original_obs": agent._last_original_obs,
        "episode_returns": monitor.episode_returns,
        "episode_lengths": monitor.episode_lengths,
        "reward_mean": np.asarray(normalise.ret_rms.mean),
        "reward_variance": np.asarray(normalise.ret_rms.var),
        "discounted_returns": normalise.returns,
        "old_obs": normalise.old_obs,
        "old_reward": normalise.old_reward,
    }
    if agent.device.type == "cuda":
        arrays["cuda_generator"] = torch.cuda.get_rng_state(agent.device).numpy()
    return arrays


def restore(
    agent: PPO,
    counters: TrainingCounters,
    arrays: Mapping[str, NDArray[np.generic]],
    parts: frozenset[Part] = EVERY_PART,
) -> None:
    """Put the chosen parts into a newly made agent; the global generators last, since making things draws from them.

    The other parts stay as they were made. Raises KeyError or ValueError where the state is another agent's.
    """
    if "environments" in parts:
        _restore_environments(agent, counters, arrays)
    if "reward_normalisation" in parts:
        statistics = layers(agent)[0].ret_rms
        statistics.mean = np.array(arrays["reward_mean"])
        statistics.var = np.array(arrays["reward_variance"])
        statistics.count = counters.reward_count
    if "steps" in parts:
        agent.num_timesteps = counters.num_timesteps
        agent._n_updates = counters.n_updates
        agent._episode_num = counters.episode_num
    if "optimizer" in parts:
        for group in agent.policy.optimizer.param_groups:
            group["lr"] = counters.learning_rate
    if "generators" in parts:
        _restore_generators(agent, counters, arrays)


def _restore_environments(agent: PPO, counters: TrainingCounters, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    normalise, monitor, vector = layers(agent)
    if len(counters.environments) != vector.num_envs:
        raise ValueError(f"{len(counters.environments)} environments, this agent has {vector.num_envs}")
    normalise.reset()
    for env, state in zip(vector.envs, counters.environments, strict=True):
        env.set_state(state)
    monitor.episode_count = counters.monitor_episodes
    monitor.episode_returns = _like(monitor.episode_returns, arrays["episode_returns"])
    monitor.episode_lengths = _like(monitor.episode_lengths, arrays["episode_lengths"])
    normalise.returns = _like(normalise.returns, arrays["discounted_returns"])
    assert isinstance(normalise.old_obs, np.ndarray)
    agent._last_obs = _like(normalise.old_obs, arrays["last_obs"])
    agent._last_original_obs = _like(normalise.old_obs, arrays["last_original_obs"])
    normalise.old_obs = _like(normalise.old_obs, arrays["old_obs"])
    normalise.old_reward = np.array(arrays["old_reward"])
    agent._last_episode_starts = np.array(arrays["last_episode_starts"], dtype=bool)
    agent.ep_info_buffer = deque((record.model_dump() for record in counters.episodes), agent._stats_window_size)
    agent.ep_success_buffer = deque(maxlen=agent._stats_window_size)


def _restore_generators(agent: PPO, counters: TrainingCounters, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    words = tuple(int(word) for word in arrays["python_generator"])
    random.setstate((3, words, counters.python_gauss))
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": arrays["numpy_generator"], "pos": counters.numpy_position},
            "has_gauss": counters.numpy_has_gauss,
            "gauss": counters.numpy_gauss,
        }
    )
    torch.set_rng_state(torch.from_numpy(arrays["torch_generator"].copy()))
    if agent.device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(arrays["cuda_generator"].copy()), agent.device)


def _like(expected: NDArray[Scalar], found: NDArray[np.generic]) -> NDArray[Scalar]:
    """A copy of `found`; raises ValueError where shape or type differ from those expected."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(f"{found.dtype} of shape {found.shape}, expected {expected.dtype} of {expected.shape}")
    return found.astype(expected.dtype)
