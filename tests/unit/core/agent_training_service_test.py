import numpy as np
import pandas as pd
import pytest
import torch

from training_fsm.core.agent import greedy_action
from training_fsm.core.agent_training_service import AgentTrainingConfig, AgentTrainingService
from training_fsm.core.core_engine import CoreEngine
from training_fsm.core.split_service import SplitDatasets, SplitService
from training_fsm.core.trading_env import BaseTradingEnv, TradingEnv
from training_fsm.domain.errors import DeviceUnavailable
from training_fsm.domain.hyperparameters import AgentSettings, LinearSchedule, PPOHyperparameters
from training_fsm.domain.request import EnvironmentConfig

SMALL = PPOHyperparameters(n_steps=64, batch_size=32, n_epochs=2)


def split(signal: bool = False) -> SplitDatasets:
    """Noise, or prices of which a feature tells the move of the bar after the next."""
    rows, generator = 600, np.random.default_rng(4)
    moves = 0.01 * generator.choice([-1.0, 1.0], size=rows)
    frame = pd.DataFrame({"close": 100 * np.exp(np.cumsum(moves))})
    known = np.roll(moves, -2) if signal else generator.normal(size=rows)
    frame["feature"] = 5.0 + 100.0 * known
    frame["secret"] = 1.0
    return CoreEngine().get_service(SplitService).split_dataset(frame)


def settings(**changes: object) -> AgentSettings:
    """A small agent."""
    small = {"total_timesteps": 256, "n_envs": 2, "net_arch": (8,), "hyperparameters": SMALL}
    return AgentSettings.model_validate(small | changes)


def test_validation_env_is_over_validation_data() -> None:
    """Each environment sees its own part, normalised with the training part's statistics."""
    parts = split()
    config = AgentTrainingConfig(agents=(settings(),), context_columns=("secret",))
    train_env, validation_env, agents = AgentTrainingService(config).create_env_and_train_agents(parts)
    assert list(agents) == ["PPO"]
    assert train_env.market.close == parts.training_data["close"].tolist()
    assert validation_env.market.close == parts.validation_data["close"].tolist()
    assert validation_env.single_pass
    assert validation_env.market.observation_columns == ("feature",)
    training = parts.training_data["feature"]
    expected = (parts.validation_data["feature"] - training.mean()) / training.std(ddof=0)
    assert validation_env.market.observations[:, 0] == pytest.approx(expected.to_numpy(), rel=1e-5)
    assert train_env.market.observations.mean() == pytest.approx(0.0, abs=1e-6)


def test_own_environment_class_is_used() -> None:
    """The environments are of the class that was brought, in training too."""
    seen = []

    class Counting(BaseTradingEnv):
        def reward(self, bar: int, log_return: float) -> float:
            seen.append(bar)
            return log_return

    config = AgentTrainingConfig(agents=(settings(),))
    train_env, validation_env, _ = (
        CoreEngine(config, Counting).get_service(AgentTrainingService).create_env_and_train_agents(split())
    )
    assert isinstance(train_env, Counting)
    assert isinstance(validation_env, Counting)
    assert len(seen) == 256


def test_same_seed_same_weights() -> None:
    """Weights follow from the seed: the same from the same, others from another."""
    weights = []
    for seed in (1, 1, 2):
        service = AgentTrainingService(AgentTrainingConfig(agents=(settings(seed=seed),)))
        agent = service.create_env_and_train_agents(split())[2]["PPO"]
        weights.append(torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_hyperparameter_reaches_the_agent() -> None:
    """SB3's agent carries each one under its own name; schedules are functions of the steps done."""
    asked = PPOHyperparameters(
        learning_rate=LinearSchedule(start=1e-3, end=1e-4, horizon_timesteps=512),
        n_steps=32,
        batch_size=16,
        n_epochs=3,
        gamma=0.9,
        gae_lambda=0.8,
        clip_range=LinearSchedule(start=0.3, end=0.1),
        clip_range_vf=0.4,
        normalize_advantage=False,
        ent_coef=0.01,
        vf_coef=0.6,
        max_grad_norm=0.7,
        target_kl=0.5,
        stats_window_size=7,
        activation_fn="relu",
        ortho_init=False,
    )
    service = AgentTrainingService(AgentTrainingConfig(agents=(settings(hyperparameters=asked, net_arch=(8, 4)),)))
    agent = service.create_env_and_train_agents(split())[2]["PPO"]
    for name in PPOHyperparameters.model_fields:
        if name in ("learning_rate", "clip_range", "clip_range_vf", "stats_window_size", "activation_fn", "ortho_init"):
            continue
        assert getattr(agent, name) == getattr(asked, name), name
    assert agent.lr_schedule(0.123) == pytest.approx(1e-3 - 0.5 * 9e-4)
    assert agent.clip_range(0.123) == pytest.approx(0.1)
    assert agent.clip_range_vf(0.123) == 0.4
    assert agent._stats_window_size == 7
    assert isinstance(agent.policy.mlp_extractor.policy_net[1], torch.nn.ReLU)
    assert [layer.out_features for layer in agent.policy.mlp_extractor.policy_net[::2]] == [8, 4]
    assert not agent.policy.ortho_init


def test_an_agent_learns_what_can_be_known() -> None:
    """A feature that tells the coming move: after training the greedy agent earns most of it."""
    config = AgentTrainingConfig(
        agents=(
            settings(
                total_timesteps=8192,
                n_envs=4,
                hyperparameters=PPOHyperparameters(
                    n_steps=128, batch_size=128, n_epochs=5, learning_rate=5e-3, gamma=0.5
                ),
            ),
        ),
        env=EnvironmentConfig(fee=0.0),
    )
    _, env, agents = AgentTrainingService(config, TradingEnv).create_env_and_train_agents(split(signal=True))
    observation, _ = env.reset(seed=0)
    ended = False
    while not ended:
        observation, _, _, ended, _ = env.step(greedy_action(agents["PPO"], observation))
    moves = len(env.market) - 2
    assert np.log(env.account.equity / 10_000.0) > 0.6 * 0.01 * moves


def test_a_missing_device_is_not_replaced() -> None:
    """A request for a GPU that is not there fails, instead of training elsewhere."""
    service = AgentTrainingService(AgentTrainingConfig(agents=(settings(device="cuda:99"),)))
    with pytest.raises(DeviceUnavailable, match="cuda:99"):
        service.create_env_and_train_agents(split())
