"""PPO agents of Stable-Baselines3 over trading environments, seeded and deterministic."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from training_fsm.core.trading_env import BaseTradingEnv, Observation
from training_fsm.core.trading_vec_env import TradingVecEnv
from training_fsm.domain.errors import DeviceUnavailable
from training_fsm.domain.hyperparameters import AgentSettings, LinearSchedule, Scheduled

ACTIVATIONS: dict[str, type[torch.nn.Module]] = {
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
    "elu": torch.nn.ELU,
    "leaky_relu": torch.nn.LeakyReLU,
}
_NAMES_SHOWN = 3


class _ScheduledValue:
    """A value by environment steps done. SB3's own schedules see only the share of the current call to `learn`.

    With a horizon of its own it sees all steps, those of ancestors too; without one this run's, over this run's length.
    """

    def __init__(self, schedule: LinearSchedule, first_step: int, own_timesteps: int) -> None:
        self._schedule = schedule
        self._origin = 0 if schedule.horizon_timesteps else first_step
        self._horizon = schedule.horizon_timesteps or own_timesteps
        self.timesteps: Callable[[], int] = lambda: first_step

    def __call__(self, _progress_remaining: float) -> float:
        done = min((self.timesteps() - self._origin) / self._horizon, 1.0)
        return self._schedule.start + done * (self._schedule.end - self._schedule.start)


def pin_torch(settings: AgentSettings) -> None:
    """Fix threads and algorithms for the whole process, before anything is computed. Raises DeviceUnavailable."""
    if settings.device != "cpu":
        # read by cuBLAS when its first handle is made; without it matrix products are not deterministic
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        device = torch.device(settings.device)
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceUnavailable(settings.device)
    torch.set_num_threads(settings.torch_threads)
    torch.use_deterministic_algorithms(True)
    # a tenth of a training's time; the training loop looks for NaN itself
    torch.distributions.Distribution.set_default_validate_args(False)


def vectorise(envs: Sequence[BaseTradingEnv], settings: AgentSettings) -> VecNormalize:
    """The environments side by side, with episode records and rewards scaled by their running deviation."""
    monitored = VecMonitor(TradingVecEnv(envs), info_keywords=("cumulative_profit",))
    return VecNormalize(monitored, norm_obs=False, norm_reward=True, gamma=settings.hyperparameters.gamma)


def make_agent(settings: AgentSettings, envs: VecNormalize, first_step: int = 0) -> PPO:
    """A new agent; every generator is seeded from `settings.seed`, also python's, numpy's and torch's global ones.

    `first_step` is the environment step that its counters will start at, once a parent's state is put into it.
    """
    chosen = settings.hyperparameters
    scheduled: list[_ScheduledValue] = []

    def value(hyperparameter: Scheduled) -> float | _ScheduledValue:
        if not isinstance(hyperparameter, LinearSchedule):
            return hyperparameter
        scheduled.append(_ScheduledValue(hyperparameter, first_step, settings.whole_timesteps))
        return scheduled[-1]

    set_random_seed(settings.seed, using_cuda=settings.device != "cpu")
    with warnings.catch_warnings():
        # what it says (a small MLP gains nothing on a GPU) is the asker's business
        warnings.filterwarnings("ignore", message="You are trying to run PPO on the GPU", category=UserWarning)
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size", category=UserWarning)
        agent = PPO(
            "MlpPolicy",
            envs,
            learning_rate=value(chosen.learning_rate),
            n_steps=chosen.n_steps,
            batch_size=chosen.batch_size,
            n_epochs=chosen.n_epochs,
            gamma=chosen.gamma,
            gae_lambda=chosen.gae_lambda,
            clip_range=value(chosen.clip_range),
            clip_range_vf=None if chosen.clip_range_vf is None else value(chosen.clip_range_vf),
            normalize_advantage=chosen.normalize_advantage,
            ent_coef=chosen.ent_coef,
            vf_coef=chosen.vf_coef,
            max_grad_norm=chosen.max_grad_norm,
            use_sde=chosen.use_sde,
            sde_sample_freq=chosen.sde_sample_freq,
            target_kl=chosen.target_kl,
            stats_window_size=chosen.stats_window_size,
            policy_kwargs={
                "net_arch": list(settings.net_arch),
                "activation_fn": ACTIVATIONS[chosen.activation_fn],
                "ortho_init": chosen.ortho_init,
                # SB3's epsilon; Adam in one kernel, a sixth faster for small networks
                "optimizer_kwargs": {"eps": 1e-5, "fused": True},
            },
            seed=settings.seed,
            device=settings.device,
            verbose=0,
        )
    for schedule in scheduled:
        schedule.timesteps = lambda: agent.num_timesteps
    return agent


def set_weights(agent: PPO, weights: Mapping[str, torch.Tensor]) -> None:
    """Put a state_dict into the agent's policy. Raises ValueError with the first names that differ, and both shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in agent.policy.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    names = [
        name for name in [*expected, *sorted(found.keys() - expected.keys())] if expected.get(name) != found.get(name)
    ]
    if names:
        shapes = [f"{name}: expected {expected.get(name)}, got {found.get(name)}" for name in names[:_NAMES_SHOWN]]
        more = [f"and {len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []
        raise ValueError(f"weights of other shapes: {'; '.join(shapes + more)}")
    agent.policy.load_state_dict(weights)


def set_moments(agent: PPO, moments: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
    """Put Adam's step counts and moments, by the parameter's number, into the agent's optimizer.

    Raises ValueError where they are another optimizer's or another network's; torch itself would notice only later.
    """
    shapes = [tuple(parameter.shape) for parameter in agent.policy.parameters()]
    for index, state in moments.items():
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        shape = shapes[index] if index in range(len(shapes)) else None
        if found != {"step": (), "exp_avg": shape, "exp_avg_sq": shape}:
            raise ValueError(f"optimizer state of parameter {index}: expected Adam's of shape {shape}, got {found}")
    groups = agent.policy.optimizer.state_dict()["param_groups"]
    agent.policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def greedy_action(agent: PPO, observation: Observation) -> int:
    """The most probable action for one observation."""
    policy = agent.policy
    with torch.no_grad():
        batch = torch.as_tensor(observation[np.newaxis], device=agent.device)
        latent = policy.mlp_extractor.forward_actor(batch)  # an MLP's feature extractor only flattens
        return int(policy.action_net(latent).argmax(dim=1).item())
