import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_models import MlflowModels
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.client.model_folder import read_record
from training_fsm.core.accounting import Account
from training_fsm.core.agent import make_agent, vectorise
from training_fsm.core.checkpoint import read_policy, save_checkpoint
from training_fsm.core.market_data import market_data, normalisation_of
from training_fsm.core.policy_export import mlp_policy, package_model
from training_fsm.core.trading_env import TradingEnv
from training_fsm.domain import events as e
from training_fsm.domain.facts import Artifact, StoredData
from training_fsm.domain.hyperparameters import AgentSettings, PPOHyperparameters
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.request import EnvironmentConfig, PriceColumns, TrainingRequest
from training_fsm.local.mlflow_server import MlflowServer

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

WINDOW = 3
COLUMNS = ("rsi", "trend")
# As inference will be: it has MLflow, and neither this package nor what trained the model.
READER = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("training_fsm", "torch", "stable_baselines3", "gymnasium", "pydantic_settings"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Refused())
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(pd.read_parquet(sys.argv[2])).to_parquet(sys.argv[3])
example = model.predict(model.input_example)
assert list(example.columns) == ["target_position", "confidence"] and len(example) == 1
assert model.metadata.metadata["feature_config_version_info"]["semver"] == "1.0.0"
assert not {"training_fsm", "torch", "stable_baselines3"} & {name.partition(".")[0] for name in sys.modules}
print(",".join(column.name for column in model.metadata.get_input_schema()))
"""


def _rows(count: int) -> pd.DataFrame:
    generator = np.random.default_rng(2)
    frame = pd.DataFrame({"event_timestamp": pd.date_range("2024-01-01", periods=count, freq="4h", tz="UTC")})
    frame["close"] = 100 * np.exp(np.cumsum(generator.normal(0, 0.02, count)))
    frame["rsi"] = generator.normal(50, 12, count).astype(np.float32)
    frame["trend"] = generator.normal(0, 0.01, count).astype(np.float32)
    return frame


def test_a_registered_model_decides_as_its_agent_in_a_process_without_us(
    mlflow_server: MlflowServer, life: Callable[[str], tuple[e.Event, ...]], tmp_path: Path
) -> None:
    """Trained, checkpointed, packaged, registered, loaded by alias with plain MLflow: 1,000 equal decisions."""
    frame = _rows(1000 + WINDOW)
    normalisation = normalisation_of(frame, COLUMNS)
    market = market_data(frame, PriceColumns(close="close"), COLUMNS, normalisation)
    config = EnvironmentConfig(window=WINDOW)
    settings = AgentSettings(net_arch=(16,), hyperparameters=PPOHyperparameters(n_steps=128))
    agent = make_agent(settings, vectorise([TradingEnv(market, config)], settings))
    agent.learn(512)
    checkpoint = tmp_path / "checkpoint.zip"
    sha256 = save_checkpoint(checkpoint, agent, "request")

    requested, frozen, started = life("run-1")[0], life("run-1")[5], life("run-1")[6]
    assert isinstance(requested, e.RunRequested)
    assert isinstance(requested.request, TrainingRequest)
    assert requested.feature_config is not None
    assert isinstance(frozen, e.DataFrozen)
    assert isinstance(started, e.TrainingStarted)
    data = frozen.model_copy(update={"observation_columns": COLUMNS, "normalisation": normalisation})
    record = TrainingRecord(
        run_id="run-1",
        request=requested.request.model_copy(update={"env": config, "agent": settings}),
        feature_config=requested.feature_config,
        data=StoredData(**dict(data)),
        checkpoint=Artifact(uri="runs:/tracking-1/checkpoints/last", sha256=sha256, size_bytes=1),
        steps=512,
        fingerprint=started.fingerprint,
        trained_until=data.bounds.training.end,
        parent=None,
        root=None,
        depth=0,
    )
    policy = mlp_policy(read_policy(checkpoint, sha256), "tanh")
    folder = package_model(policy, record, datetime(2026, 11, 24, tzinfo=UTC), tmp_path / "model")

    connection, name = MlflowConnection(mlflow_server.url), f"model-{uuid.uuid4().hex[:8]}"
    tracking_run = MlflowTracking(connection).open_run(str(uuid.uuid4()), {}, {})
    models = MlflowModels(connection)
    models.set_alias(name, "candidate", models.register(name, "key", folder, tracking_run, {}).version)

    windows, expected = _played(agent, market, config, frame)
    windows.to_parquet(tmp_path / "windows.parquet")
    fetched = models.fetch(models.look_up(f"models:/{name}@candidate"), tmp_path / "fetched")
    assert read_record(fetched) == record
    columns = _read_elsewhere(f"models:/{name}@candidate", mlflow_server.url, tmp_path)
    decided = pd.read_parquet(tmp_path / "decisions.parquet")
    assert columns == "rsi,trend,account_position,account_unrealised_return,account_bars_in_trade,account_drawdown"
    assert len(expected) == 1000
    assert decided["target_position"].tolist() == expected
    assert len(set(expected)) > 1
    assert decided["confidence"].between(1 / 3, 1).all()


def _played(agent, market, config: EnvironmentConfig, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[float]]:
    """The windows of one pass, as inference would ask, and the agent's targets as SB3 predicts them."""
    env = TradingEnv(market, config, single_pass=True)
    observation, _ = env.reset(seed=0)
    windows, targets, ended = [], [], False
    while not ended:
        action = int(agent.predict(observation, deterministic=True)[0])
        windows.append(_window(frame, env.bar, env.account))
        targets.append(float(action - 1))
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    return pd.concat(windows, ignore_index=True), targets


def _window(frame: pd.DataFrame, bar: int, account: Account) -> pd.DataFrame:
    """Features as doubles, and the account in every row; the last one counts."""
    return (
        frame.iloc[bar + 1 - WINDOW : bar + 1][list(COLUMNS)]
        .astype(float)
        .assign(
            account_position=float(account.position),
            account_unrealised_return=account.unrealised_return(bar),
            account_bars_in_trade=float(bar - account.entry_bar) if account.position else 0.0,
            account_drawdown=account.drawdown,
        )
    )


def _read_elsewhere(model_uri: str, tracking_uri: str, folder: Path) -> str:
    """Load and ask the model in a process of its own; returns the names of its input's columns."""
    script = folder / "reader.py"
    script.write_text(READER)
    environment = {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(folder)}
    argv = [
        sys.executable,
        "-I",
        str(script),
        model_uri,
        str(folder / "windows.parquet"),
        str(folder / "decisions.parquet"),
    ]
    done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]
