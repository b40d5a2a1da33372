"""Environment steps a second, bare, and in training: `python -m benchmarks.env_steps [timesteps]`."""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from training_fsm.core.market_data import MarketData, market_data, normalisation_of
from training_fsm.core.split_bounds import split_bounds
from training_fsm.core.trading_env import TradingEnv
from training_fsm.core.training_loop import CurvePoint
from training_fsm.core.training_segment import train_segment
from training_fsm.domain.events import DataFrozen
from training_fsm.domain.facts import Artifact, Gaps
from training_fsm.domain.request import EnvironmentConfig, PriceColumns, TrainingRequest

ROWS, FEATURES = 20_000, 12
PRICES = PriceColumns(close="close", open="open", atr="atr")
OBSERVED = tuple(f"feature_{index}" for index in range(FEATURES))
CONFIGS = {
    "default": EnvironmentConfig(),
    "window 10": EnvironmentConfig(window=10),
    "everything on": EnvironmentConfig(
        window=10,
        slippage_atr_based=0.1,
        slippage_against_trade_probability=0.5,
        max_daily_drawdown=0.05,
        max_alltime_drawdown=0.2,
        max_time_in_trade=20,
        min_percentage_open_position=1.0,
        variance_penalty_weight=1.0,
        atr_penalty_weight=0.1,
    ),
}


def synthetic_frame() -> pd.DataFrame:
    """A random walk with features of noise."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(ROWS, FEATURES)).astype(np.float32), columns=list(OBSERVED))
    frame["close"] = 100 * np.exp(np.cumsum(generator.normal(size=ROWS) * 0.001))
    frame["open"] = frame["close"].shift(fill_value=100.0)
    frame["atr"] = frame["close"] * 0.001
    frame["event_timestamp"] = pd.date_range(datetime(2020, 1, 1, tzinfo=UTC), periods=ROWS, freq="h")
    return frame


def bare_steps_per_s(market: MarketData, config: EnvironmentConfig, steps: int = 200_000) -> float:
    """Random actions, resets included."""
    env = TradingEnv(market, config)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 3, size=steps).tolist()
    started = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - started)


@dataclass
class Rates:
    """Steps per second of each rollout with its update."""

    values: list[float] = field(default_factory=list)

    def on_progress(self, step: int, total: int, steps_per_s: float, metrics: dict[str, float]) -> None:
        """Not of interest."""

    def on_rollout(self, points: Sequence[CurvePoint]) -> None:
        """Keep the rate."""
        self.values += [point.value for point in points if point.name == "time/fps"]

    def on_checkpoint(self, path: Path, step: int, sha256: str) -> None:
        """Not of interest."""

    def should_stop(self) -> bool:
        """Never."""
        return False


def training_steps_per_s(frame: pd.DataFrame, n_envs: int, timesteps: int) -> float:
    """Median over the rollouts of a training with two layers of 64 and n_steps 256."""
    request = TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "benchmark",
            "symbol": "NOISE",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": "2020-01-01T00:00:00Z", "end": "2023-01-01T00:00:00Z"},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "noise"}]},
            "data": {"columns": PRICES.model_dump()},
            "agent": {"n_envs": n_envs, "total_timesteps": timesteps, "hyperparameters": {"n_steps": 256}},
        }
    )
    bounds = split_bounds(pd.DatetimeIndex(frame["event_timestamp"]), request.split, request.embargo_bars)
    frozen = DataFrozen(
        artifact=Artifact(uri="memory:", sha256="", size_bytes=0),
        digest="",
        rows=len(frame),
        warmup_rows=0,
        gaps=Gaps(count=0, longest_bars=0, longest_after=None),
        periods_per_year=24 * 365.25,
        observation_columns=OBSERVED,
        bounds=bounds,
        normalisation=normalisation_of(frame.iloc[: bounds.training.last], OBSERVED),
    )
    rates = Rates()
    with tempfile.TemporaryDirectory() as spool:
        train_segment(request, frame, frozen, Path(spool), None, rates)
    return float(np.median(rates.values))


def main() -> None:
    """Print both tables."""
    timesteps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_480
    frame = synthetic_frame()
    market = market_data(frame, PRICES, OBSERVED, normalisation_of(frame, OBSERVED))
    print(f"{'environment, random actions':<32}{'steps/s':>10}")
    for name, config in CONFIGS.items():
        print(f"{name:<32}{bare_steps_per_s(market, config):>10,.0f}")
    print(f"\n{'PPO 64x64, n_steps 256':<32}{'steps/s':>10}")
    for n_envs in (1, 4, 8):
        print(f"{f'n_envs {n_envs}':<32}{training_steps_per_s(frame, n_envs, timesteps):>10,.0f}")


if __name__ == "__main__":
    main()
