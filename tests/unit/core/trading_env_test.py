import json
from math import log

import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from training_fsm.core.market_data import market_data, normalisation_of
from training_fsm.core.trading_env import ACCOUNT_FIELDS, BaseTradingEnv, TradingEnv
from training_fsm.domain.errors import DataUnusable
from training_fsm.domain.request import EnvironmentConfig, PriceColumns

EVERYTHING = EnvironmentConfig(
    slippage_atr_based=0.1,
    slippage_against_trade_probability=0.5,
    max_daily_drawdown=0.05,
    max_alltime_drawdown=0.1,
    max_time_in_trade=10,
    min_percentage_open_position=1.0,
    variance_penalty_weight=1.0,
    atr_penalty_weight=0.1,
    window=5,
    episode_bars=30,
)


def frame(rows: int = 200) -> pd.DataFrame:
    """A random walk with two features."""
    generator = np.random.default_rng(1)
    bars = pd.DataFrame({"rsi": generator.normal(50, 20, rows), "trend": generator.normal(0, 1, rows)})
    bars["close"] = 100 * np.exp(np.cumsum(generator.normal(0, 0.01, rows)))
    bars["open"] = bars["close"].shift(fill_value=100.0)
    bars["atr"] = 1.0
    bars["event_timestamp"] = pd.date_range("2020-01-01", periods=rows, freq="h", tz="UTC")
    return bars


def actions(count: int) -> list[int]:
    """The same random actions each time."""
    return np.random.default_rng(2).integers(0, 3, size=count).tolist()


@pytest.mark.parametrize("config", [EnvironmentConfig(), EVERYTHING, EnvironmentConfig(long_only=True)])
@pytest.mark.filterwarnings("ignore:.*not within the observation space.*")
def test_passes_the_checkers(config: EnvironmentConfig) -> None:
    """Gymnasium's and SB3's own checks find nothing."""
    gymnasium_check_env(TradingEnv(frame(), config), skip_render_check=True)
    sb3_check_env(TradingEnv(frame(), config))


def test_observation_holds_nothing_later() -> None:
    """Rows after the current bar can be anything: observations up to it stay the same."""
    now = 60
    bars, changed = frame(), frame()
    changed.loc[now + 1 :, ["rsi", "trend", "close", "open", "atr"]] *= 3.0
    seen = []
    for rows in (bars, changed):
        env = TradingEnv(rows, EVERYTHING.model_copy(update={"max_alltime_drawdown": None}), single_pass=True)
        observations = [env.reset(seed=3)[0]]
        observations += [env.step(action)[0] for action in actions(now - env.bar)]
        assert env.bar == now
        seen.append(np.stack(observations))
    assert np.array_equal(seen[0], seen[1])


def test_observation_by_hand() -> None:
    """Two bars of normalised features, the older first, then the account's fields."""
    bars = pd.DataFrame({"rsi": [40.0, 50.0, 60.0, 1e6], "close": [100.0, 100.0, 110.0, 99.0]})
    prices = PriceColumns(close="close")
    market = market_data(bars, prices, ("rsi",), normalisation_of(bars.iloc[:3], ("rsi",)))
    env = TradingEnv(market, EnvironmentConfig(window=2, fee=0.0), single_pass=True)
    spread = np.sqrt(200 / 3)
    observation, _ = env.reset()
    assert observation.tolist() == pytest.approx([-10 / spread, 0, 0, 0, 0, 0], rel=1e-6)
    observation, *_ = env.step(2)
    assert observation.tolist() == pytest.approx([0, 10 / spread, 1, 0, 0, 0], rel=1e-6)
    observation, *_ = env.step(2)
    assert observation.tolist() == pytest.approx([10 / spread, 10, 1, -0.1, 1 / 252, 0.1], rel=1e-6)
    assert len(ACCOUNT_FIELDS) == 4


def test_reward_by_hand() -> None:
    """Open fills: short over -10 percent, with both penalties."""
    bars = pd.DataFrame({"close": [100.0, 90.0, 90.0], "open": [100.0, 100.0, 90.0], "atr": [2.0, 3.0, 4.0]})
    config = EnvironmentConfig(fee=0.001, variance_penalty_weight=2.0, atr_penalty_weight=0.5)
    env = TradingEnv(bars, config, single_pass=True)
    env.reset()
    _, reward, terminated, truncated, _ = env.step(0)
    r = log(1.1 - 0.001)
    assert reward == pytest.approx(r - 2.0 * r**2 - 0.5 * 3.0 / 90.0)
    assert (terminated, truncated) == (False, False)
    _, reward, terminated, truncated, info = env.step(1)
    assert reward == pytest.approx(log((1.099 - 0.001 * 0.9) / 1.099) - 2.0 * log((1.099 - 0.0009) / 1.099) ** 2)
    assert (terminated, truncated) == (False, True)
    assert info["cumulative_profit"] == pytest.approx(0.0981)


def test_own_reward() -> None:
    """A subclass overrides one method, and finds context that the agent does not see."""

    class Cautious(BaseTradingEnv):
        def reward(self, bar: int, log_return: float) -> float:
            return log_return - self.market.columns["spread"][bar]

    bars = frame().assign(spread=0.25)
    env = Cautious(bars, EnvironmentConfig(), context_columns=["spread"])
    observation, _ = env.reset(seed=0)
    assert observation.shape == (2 + 4,)
    assert env.step(1)[1] == -0.25


def test_breach_terminates() -> None:
    """Beyond a drawdown bound the episode is over, and not merely cut off."""
    bars = pd.DataFrame({"x": [0.0] * 4, "close": [100.0, 100.0, 80.0, 80.0]})
    env = TradingEnv(bars, EnvironmentConfig(max_alltime_drawdown=0.1), single_pass=True)
    env.reset()
    env.step(2)
    _, _, terminated, truncated, info = env.step(2)
    assert (terminated, truncated, info["breach"]) == (True, False, "alltime_drawdown")


def test_training_episodes_are_random_windows() -> None:
    """Every episode has its length, lies within the rows, and starts reach both ends of what is possible."""
    env = TradingEnv(frame(50), EnvironmentConfig(episode_bars=40, window=3))
    env.reset(seed=0)
    starts = set()
    for _ in range(100):
        env.reset()
        starts.add(env.bar)
        steps, truncated = 0, False
        while not truncated:
            _, _, _, truncated, _ = env.step(1)
            steps += 1
        assert steps == 40
    assert starts == set(range(2, 10))


def test_single_pass_takes_every_bar() -> None:
    """From the first full window to the last row."""
    env = TradingEnv(frame(50), EnvironmentConfig(episode_bars=10, window=3), single_pass=True)
    env.reset()
    assert env.bar == 2
    while not env.step(1)[3]:
        pass
    assert env.bar == 49


def test_long_only_has_two_targets() -> None:
    """Action 0 is flat, 1 long."""
    env = TradingEnv(frame(), EnvironmentConfig(long_only=True))
    env.reset(seed=0)
    assert env.action_space.n == 2
    env.step(1)
    assert env.account.position == 1
    env.step(0)
    assert env.account.position == 0


@pytest.mark.parametrize("after", [0, 7, 45])
def test_state_round_trip_gives_the_same_future(after: int) -> None:
    """State that went through JSON into a new environment goes on as the old one, over several episodes."""
    old, new = TradingEnv(frame(), EVERYTHING), TradingEnv(frame(), EVERYTHING)
    old.reset(seed=5)
    new.reset(seed=6)

    def play(env: TradingEnv, moves: list[int]) -> list[object]:
        path: list[object] = []
        for move in moves:
            observation, reward, terminated, truncated, _ = env.step(move)
            path += [observation.tobytes(), reward, terminated, truncated]
            if terminated or truncated:
                path.append(env.reset()[0].tobytes())
        return [*path, env.action_space.sample(), env.account.trades]

    play(old, actions(after))
    new.set_state(json.loads(json.dumps(old.get_state())))
    assert new.get_state() == old.get_state()
    assert play(new, actions(100)) == play(old, actions(100))


def test_too_few_bars_are_named() -> None:
    """A part shorter than the window is refused with both numbers."""
    with pytest.raises(DataUnusable, match=r"5 bars, expected at least 6 for env\.window 5"):
        TradingEnv(frame(5), EVERYTHING)
