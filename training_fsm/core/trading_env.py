"""The trading environment: targets in, bars of normalised features and the account's state out."""

from collections.abc import Mapping, Sequence

import gymnasium
import numpy as np
import pandas as pd
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import JsonValue

from training_fsm.core.accounting import Account
from training_fsm.core.market_data import (
    OBSERVATION_BOUND,
    MarketData,
    default_observation_columns,
    default_price_columns,
    market_data,
)
from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.facts import Failure
from training_fsm.domain.request import EnvironmentConfig

ACCOUNT_FIELDS = ("position", "unrealised_return", "bars_in_trade", "drawdown")
"""The last numbers of every observation, in this order."""
BARS_IN_TRADE_UNIT = 252.0
"""`bars_in_trade` is counted in so many bars."""

Observation = NDArray[np.float32]


class BaseTradingEnv(gymnasium.Env[Observation, np.int64]):
    """A market seen bar by bar; subclass it and override `reward` to bring your own.

    Action: Discrete(3), the target position 0 short, 1 flat, 2 long; with `long_only` Discrete(2), 0 flat, 1 long.
    It is decided on the close of the current bar and filled in the next one.

    Observation: float32, `window` x observation columns (oldest bar first) + ACCOUNT_FIELDS, all within +-10:
    position (-1, 0, +1), return of the open position on its entry price, bars it has been open / 252, and the loss
    from the highest equity as a fraction of it. Nothing in it is later than the current bar's close.

    An episode is a random window of `episode_bars`, or with `single_pass` all bars in one go. It is terminated when a
    drawdown bound is breached or the account ruined, and truncated at the window's end. The last info of an episode has
    `cumulative_profit`, the profit as a fraction of the start balance.

    A subclass that keeps state of its own between steps extends `get_state` and `set_state`; without that a resumed
    training differs from an uninterrupted one.
    """

    def __init__(
        self,
        env_data_source: pd.DataFrame | MarketData,
        env_config: EnvironmentConfig,
        context_columns: Sequence[str] | None = None,
        *,
        single_pass: bool = False,
    ) -> None:
        """Prepare an environment over these rows.

        A DataFrame is taken as it is, unnormalised: prices are the columns called close, open, high, low and atr;
        `context_columns` are for the reward and not observed; every other numeric column is observed. For other names
        and for normalisation give a MarketData, which several environments can share. Raises DataUnusable.
        """
        if isinstance(env_data_source, pd.DataFrame):
            prices = default_price_columns(env_data_source)
            observed = default_observation_columns(env_data_source, prices, context_columns)
            env_data_source = market_data(env_data_source, prices, observed)
        self.market: MarketData = env_data_source
        self.config = env_config
        self.single_pass = single_pass
        self.account = Account(self.market, env_config)
        self.bar = 0
        """Row whose close the agent has seen last."""
        self._window = env_config.window
        self._last_bar = len(self.market) - 1
        self._end_bar = self._last_bar
        if self._last_bar < self._window:
            words = f"{len(self.market)} bars, expected at least {self._window + 1} for env.window {self._window}"
            raise DataUnusable(Failure(kind="data_unusable", words=words))
        self._features = self._window * len(self.market.observation_columns)
        self._flat = self.market.observations.reshape(-1)
        self._columns = len(self.market.observation_columns)
        self._shift = 0 if env_config.long_only else 1
        self.action_space = spaces.Discrete(2 if env_config.long_only else 3)
        shape = (self._features + len(ACCOUNT_FIELDS),)
        self.observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, shape, np.float32)

    def reward(self, bar: int, log_return: float) -> float:
        """The reward for the step that arrived at row `bar`; override it.

        `log_return` is the change of log equity over the step. `self.account` is the account after it, `self.market`
        holds prices and `columns`, the context, up to row `bar` and beyond: a reward may look ahead, an observation
        never does. Must be finite.
        """
        return log_return

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Observation, dict[str, object]]:
        """Start an episode; a seed also seeds the action space."""
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
        first, bars = self._window - 1, self.config.episode_bars
        self.bar, self._end_bar = first, self._last_bar
        if not self.single_pass and self._last_bar - first > bars:
            self.bar = int(self.np_random.integers(first, self._last_bar - bars + 1))
            self._end_bar = self.bar + bars
        self.account.reset()
        return self._observe(), {}

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        """Decide a target on the current bar and arrive at the next."""
        account = self.account
        log_return = account.advance(self.bar, int(action) - self._shift, self.np_random)
        self.bar = bar = self.bar + 1
        reward = self.reward(bar, log_return)
        terminated = account.breach is not None
        truncated = not terminated and bar >= self._end_bar
        if not (terminated or truncated):
            return self._observe(), reward, False, False, {}
        start = self.config.start_balance
        info: dict[str, object] = {"cumulative_profit": account.equity / start - 1.0, "breach": account.breach}
        return self._observe(), reward, terminated, truncated, info

    def get_state(self) -> dict[str, JsonValue]:
        """Everything the rest of the episode, and the episodes after it, depend on, as JSON."""
        return {
            "bar": self.bar,
            "end_bar": self._end_bar,
            "account": self.account.get_state(),
            "generator": _generator_state(self.np_random),
            "action_generator": _generator_state(self.action_space.np_random),
        }

    def set_state(self, state: Mapping[str, JsonValue]) -> None:
        """Go on from what `get_state` gave on an environment over the same market."""
        bar, end_bar = state["bar"], state["end_bar"]
        if not isinstance(bar, int) or not isinstance(end_bar, int) or not 0 <= bar <= end_bar <= self._last_bar:
            raise ValueError(f"state: expected bars within 0..{self._last_bar}, got {bar} and {end_bar}")
        self.bar, self._end_bar = bar, end_bar
        self.account.set_state(state["account"])
        _set_generator(self.np_random, state["generator"])
        _set_generator(self.action_space.np_random, state["action_generator"])

    def _observe(self) -> Observation:
        account, features = self.account, self._features
        observation = np.empty(features + 4, dtype=np.float32)
        end = (self.bar + 1) * self._columns
        observation[:features] = self._flat[end - features : end]
        bound = OBSERVATION_BOUND
        if account.position:
            unrealised = account.unrealised_return(self.bar)
            observation[features] = account.position
            observation[features + 1] = (
                unrealised if -bound < unrealised < bound else (bound if unrealised > 0 else -bound)
            )
            observation[features + 2] = min((self.bar - account.entry_bar) / BARS_IN_TRADE_UNIT, bound)
        else:
            observation[features : features + 3] = 0.0
        observation[features + 3] = min(account.drawdown, bound)
        return observation


class TradingEnv(BaseTradingEnv):
    """The default: change of log equity, with penalties for variance and for positions in volatile bars.

    reward = r - variance_penalty_weight x r^2 - atr_penalty_weight x |position| x atr / close, where r is the change of
    log equity over the step, position the one held at its end, atr and close those of the bar arrived at.
    """

    def reward(self, bar: int, log_return: float) -> float:
        """The formula above; both weights are 0 by default."""
        config, reward = self.config, log_return
        if config.variance_penalty_weight:
            reward -= config.variance_penalty_weight * log_return * log_return
        if config.atr_penalty_weight and self.account.position and self.market.atr is not None:
            reward -= config.atr_penalty_weight * self.market.atr[bar] / self.market.close[bar]
        return reward


def _generator_state(generator: np.random.Generator) -> JsonValue:
    state: JsonValue = {**generator.bit_generator.state}
    return state


def _set_generator(generator: np.random.Generator, state: JsonValue) -> None:
    if not isinstance(state, dict):
        raise ValueError(f"state: expected a generator's state, got {state!r}")
    generator.bit_generator.state = state
