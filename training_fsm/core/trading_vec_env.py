"""Many trading environments in one process, stepped in turn, without the copies of SB3's DummyVecEnv."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from training_fsm.core.trading_env import BaseTradingEnv, Observation


class RewardNotFinite(ArithmeticError):
    """An environment gave a reward that is NaN or infinite."""


class TradingVecEnv(VecEnv):
    """SB3's interface over environments that share their market; environment i gets a child seed of its own."""

    def __init__(self, envs: Sequence[BaseTradingEnv]) -> None:
        self.envs = tuple(envs)
        super().__init__(len(self.envs), self.envs[0].observation_space, self.envs[0].action_space)
        self._shape = (self.num_envs, *(self.envs[0].observation_space.shape or ()))
        self._actions: list[int] = []

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds for the next reset, one child of `seed` for each environment."""
        children = np.random.SeedSequence(seed).spawn(self.num_envs)
        self._seeds = [int(child.generate_state(1)[0]) for child in children]
        return self._seeds

    def reset(self) -> Observation:
        """Start an episode in each environment; observations, environments x fields."""
        observations = np.empty(self._shape, dtype=np.float32)
        for index, env in enumerate(self.envs):
            observations[index], self.reset_infos[index] = env.reset(seed=self._seeds[index])
        self._reset_seeds()
        return observations

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Take the actions, one for each environment."""
        self._actions = actions.tolist()

    def step_wait(self) -> VecEnvStepReturn:
        """Step each environment; one whose episode ends starts its next. Raises RewardNotFinite."""
        observations = np.empty(self._shape, dtype=np.float32)
        rewards = np.empty(self.num_envs, dtype=np.float32)
        dones = np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, object]] = []
        for index, (env, action) in enumerate(zip(self.envs, self._actions, strict=True)):
            observation, reward, terminated, truncated, info = env.step(action)
            if not math.isfinite(reward):
                raise RewardNotFinite(f"the reward of environment {index} at row {env.bar} is {reward}")
            rewards[index] = reward
            if terminated or truncated:
                dones[index] = True
                info |= {"terminal_observation": observation, "TimeLimit.truncated": truncated}
                observation, self.reset_infos[index] = env.reset()
            observations[index] = observation
            infos.append(info)
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[object]:
        """The attribute of each chosen environment."""
        return [getattr(self.envs[index], attr_name) for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each chosen environment."""
        for index in self._get_indices(indices):
            setattr(self.envs[index], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[object]:
        """Call a method of each chosen environment."""
        return [
            getattr(self.envs[index], method_name)(*method_args, **method_kwargs)
            for index in self._get_indices(indices)
        ]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Whether each chosen environment is wrapped; see SB3."""
        return [is_wrapped(self.envs[index], wrapper_class) for index in self._get_indices(indices)]
