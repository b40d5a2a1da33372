"""Environments and trained agents from a split data set, in this process."""

from collections.abc import Mapping

from pydantic import Field
from stable_baselines3 import PPO

from training_fsm.core.agent import make_agent, pin_torch, vectorise
from training_fsm.core.market_data import (
    default_observation_columns,
    default_price_columns,
    market_data,
    normalisation_of,
)
from training_fsm.core.split_service import SplitDatasets
from training_fsm.core.trading_env import BaseTradingEnv, TradingEnv
from training_fsm.core.training_loop import rollouts
from training_fsm.domain.hyperparameters import AgentSettings
from training_fsm.domain.model import Model
from training_fsm.domain.request import EnvironmentConfig, PriceColumns


class AgentTrainingConfig(Model):
    """Which agents are trained, in which environment, and what the columns are."""

    agents: tuple[AgentSettings, ...] = Field(default=(AgentSettings(),), min_length=1)
    env: EnvironmentConfig = EnvironmentConfig()
    prices: PriceColumns | None = None
    """Absent: the columns called close, open, high, low, atr."""
    context_columns: tuple[str, ...] = ()
    """Columns that rewards may use and agents do not see, besides prices."""


class AgentTrainingService:
    """Trains agents as a run's segment does, without checkpoints."""

    def __init__(self, config: AgentTrainingConfig | None = None, env_class: type[BaseTradingEnv] = TradingEnv) -> None:
        self.config = config if config is not None else AgentTrainingConfig()
        self.env_class = env_class

    def create_env_and_train_agents(
        self, split_datasets: SplitDatasets
    ) -> tuple[BaseTradingEnv, BaseTradingEnv, Mapping[str, PPO]]:
        """Train every agent on the training data.

        Returns an environment over the training data, one over the validation data (a single pass), and the agents by
        name. Features are normalised with the training data's mean and deviation, in both environments.
        Raises DataUnusable, DeviceUnavailable, TrainingDiverged.
        """
        config, frame = self.config, split_datasets.training_data
        prices = config.prices if config.prices is not None else default_price_columns(frame)
        observed = default_observation_columns(frame, prices, config.context_columns)
        normalisation = normalisation_of(frame, observed)
        training = market_data(frame, prices, observed, normalisation)
        validation = market_data(split_datasets.validation_data, prices, observed, normalisation)
        agents: dict[str, PPO] = {}
        for settings in config.agents:
            pin_torch(settings)
            envs = [self.env_class(training, config.env) for _ in range(settings.n_envs)]
            agent = make_agent(settings, vectorise(envs, settings))
            for _ in rollouts(agent, settings.whole_timesteps, lambda _step, _steps_per_s: None):
                pass
            agents[settings.name] = agent
        train_env = self.env_class(training, config.env)
        validation_env = self.env_class(validation, config.env, single_pass=True)
        return train_env, validation_env, agents
