"""Hyper-parameters of the agents, under the names that Stable-Baselines3 gives them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training_fsm.domain.model import Model


class LinearSchedule(Model):
    """A value that moves linearly from `start` to `end` over the horizon and stays there."""

    schedule: Literal["linear"] = "linear"
    start: float = Field(ge=0)
    end: float = Field(ge=0)
    horizon_timesteps: int | None = Field(default=None, gt=0)
    """Environment steps over which it moves, counted from the first ancestor's start, so that a continued run goes on
    where its parent's schedule was. Absent: this run's own steps, and a continued run begins it again."""


Scheduled = float | LinearSchedule


class PPOHyperparameters(Model):
    """Every hyper-parameter of `stable_baselines3.PPO`; defaults are SB3's."""

    learning_rate: Scheduled = 3e-4
    n_steps: int = Field(default=2048, gt=0, le=1_000_000)
    batch_size: int = Field(default=64, gt=1)
    n_epochs: int = Field(default=10, gt=0)
    gamma: float = Field(default=0.99, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    clip_range: Scheduled = 0.2
    clip_range_vf: Scheduled | None = None
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = Field(default=0.5, gt=0)
    use_sde: bool = False
    sde_sample_freq: int = -1
    target_kl: float | None = Field(default=None, gt=0)
    stats_window_size: int = Field(default=100, gt=0)
    activation_fn: Literal["tanh", "relu", "elu", "leaky_relu"] = "tanh"
    ortho_init: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.use_sde:
            raise ValueError("use_sde: expected false, state-dependent exploration needs continuous actions")
        return self


class AgentSettings(Model):
    """Which agent is trained, how long, and from which seed."""

    name: Literal["PPO"] = "PPO"
    seed: int = Field(default=0, ge=0, lt=2**32)
    total_timesteps: int = Field(default=10_000, gt=0, le=10_000_000_000)
    """Environment steps; rounded up to whole rollouts of n_steps x n_envs."""
    n_envs: int = Field(default=1, gt=0, le=1024)
    net_arch: tuple[int, ...] = Field(default=(64, 64), max_length=8)
    """Units per hidden layer, the same for policy and value."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    torch_threads: int = Field(default=1, gt=0, le=256)
    """Part of the result: another number can give other weights."""
    checkpoint_every_timesteps: int | None = Field(default=None, gt=0)
    """A checkpoint at the first rollout boundary after so many steps; absent: about twenty a run."""
    resume_fidelity: Literal["exact", "any"] = "any"
    """`exact` refuses to resume where libraries or the processor differ from those of the checkpoint."""
    hyperparameters: PPOHyperparameters = PPOHyperparameters()

    @property
    def rollout_timesteps(self) -> int:
        """Environment steps between two updates."""
        return self.hyperparameters.n_steps * self.n_envs

    @property
    def whole_timesteps(self) -> int:
        """`total_timesteps` rounded up to whole rollouts, as SB3 does."""
        return self.whole(self.total_timesteps)

    def whole(self, timesteps: int) -> int:
        """Environment steps rounded up to whole rollouts."""
        return -(-timesteps // self.rollout_timesteps) * self.rollout_timesteps

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(units <= 0 or units > 8192 for units in self.net_arch):
            raise ValueError(f"net_arch: expected 1 to 8192 units per layer, got {list(self.net_arch)}")
        if self.rollout_timesteps < 2:
            raise ValueError("hyperparameters.n_steps: n_steps x n_envs must be at least 2")
        if self.hyperparameters.batch_size > self.rollout_timesteps:
            raise ValueError(
                f"hyperparameters.batch_size: expected at most n_steps x n_envs = {self.rollout_timesteps}, "
                f"got {self.hyperparameters.batch_size}"
            )
        return self
