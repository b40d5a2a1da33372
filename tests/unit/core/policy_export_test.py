import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from training_fsm.client.digest import folder_digest
from training_fsm.client.model_folder import RECORD_FILE, read_record
from training_fsm.core.agent import ACTIVATIONS
from training_fsm.core.market_data import market_data
from training_fsm.core.policy_export import (
    ModelSpecification,
    exported,
    input_example,
    mlp_policy,
    package_model,
    specification,
)
from training_fsm.core.trading_env import TradingEnv
from training_fsm.domain import events as e
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import ColumnNormalisation, ModelRef
from training_fsm.domain.hyperparameters import AgentSettings
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.request import EnvironmentConfig, PriceColumns
from training_fsm.domain.states import State
from training_fsm.service import model_lifecycle_service

# MLflow warns about type hints of its own while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

MADE = datetime(2026, 11, 24, 12, tzinfo=UTC)
NORMALISATION = (
    ColumnNormalisation(column="rsi", mean=50.0, deviation=12.5),
    ColumnNormalisation(column="still", mean=3.0, deviation=0.0),
    ColumnNormalisation(column="trend", mean=-0.001, deviation=0.02),
)


class Shape(gymnasium.Env[np.ndarray, int]):
    """Spaces and nothing else."""

    def __init__(self, fields: int, actions: int) -> None:
        self.observation_space = spaces.Box(-10, 10, (fields,), np.float32)
        self.action_space = spaces.Discrete(actions)


def _agent(activation: str, net_arch: list[int], fields: int = 12, actions: int = 3) -> PPO:
    """An untrained agent whose last layer is scaled up, so that its choices differ."""
    kwargs = {"net_arch": net_arch, "activation_fn": ACTIVATIONS[activation]}
    agent = PPO("MlpPolicy", Shape(fields, actions), policy_kwargs=kwargs, seed=3, device="cpu", n_steps=64)
    with torch.no_grad():
        agent.policy.action_net.weight.mul_(100)
    return agent


def _weights(agent: PPO) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in agent.policy.state_dict().items()}


@pytest.fixture
def record_of(life: Callable[[str], tuple[e.Event, ...]]) -> Callable[..., TrainingRecord]:
    """The record of a run over three features, its environment as told."""

    def made(**env: object) -> TrainingRecord:
        run = None
        for event in life("run-1"):
            run = evolve(run, "run-1", event, State.EVALUATING)
        assert run is not None
        record = model_lifecycle_service.record_of(run)
        columns = tuple(entry.column for entry in NORMALISATION)
        data = record.data.model_copy(update={"observation_columns": columns, "normalisation": NORMALISATION[::-1]})
        config = EnvironmentConfig.model_validate({"window": 2} | env)
        request = record.request.model_copy(update={"env": config})
        return record.model_copy(update={"data": data, "request": request})

    return made


@pytest.fixture
def spec_of(record_of: Callable[..., TrainingRecord]) -> Callable[..., ModelSpecification]:
    """The specification of that run."""
    return lambda **env: specification(record_of(**env))


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "leaky_relu"])
@pytest.mark.parametrize("net_arch", [[], [64, 64], [7, 16, 5]])
def test_the_forward_pass_equals_stable_baselines3(activation: str, net_arch: list[int]) -> None:
    """On 1,000 observations every action is SB3's, and the logits are close to torch's."""
    agent = _agent(activation, net_arch)
    observations = np.random.default_rng(0).uniform(-10, 10, (1000, 12)).astype(np.float32)
    policy = mlp_policy(_weights(agent), activation)
    logits = policy.logits(observations)
    with torch.no_grad():
        distribution = agent.policy.get_distribution(torch.as_tensor(observations)).distribution
    # torch keeps logits less their log-sum-exp
    shifted = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(shifted, distribution.logits.numpy(), rtol=1e-5, atol=1e-5)
    expected, _ = agent.predict(observations, deterministic=True)
    assert logits.argmax(axis=1).tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 1
    assert [policy.action(one) for one in observations[:50]] == expected[:50].tolist()


def test_decisions_equal_the_environment_and_the_agent(spec_of: Callable[..., ModelSpecification]) -> None:
    """From raw rows and the account the exported policy decides what the agent decides on the environment's view."""
    generator = np.random.default_rng(1)
    frame = pd.DataFrame({"event_timestamp": pd.date_range("2024-01-01", periods=400, freq="4h", tz="UTC")})
    frame["close"] = 100 * np.exp(np.cumsum(generator.normal(0, 0.05, 400)))
    frame["rsi"] = generator.normal(50, 12.5, 400).astype(np.float32)
    frame["still"], frame["trend"] = np.float32(3), generator.normal(0, 0.3, 400).astype(np.float32)
    spec = spec_of(window=3)
    columns = [entry.column for entry in NORMALISATION]
    market = market_data(frame, PriceColumns(close="close"), columns, NORMALISATION)
    env = TradingEnv(market, EnvironmentConfig(window=3), single_pass=True)
    agent = _agent("tanh", [16], fields=3 * 3 + 4)
    policy = exported(spec, mlp_policy(_weights(agent), "tanh"))
    observation, _ = env.reset(seed=0)
    ended = False
    while not ended:
        rows = frame.iloc[env.bar - 2 : env.bar + 1][columns].assign(
            account_position=float(env.account.position),
            account_unrealised_return=env.account.unrealised_return(env.bar),
            account_bars_in_trade=float(env.bar - env.account.entry_bar) if env.account.position else 0.0,
            account_drawdown=env.account.drawdown,
        )
        np.testing.assert_array_equal(policy.observations(rows)[0], observation)
        action = int(agent.predict(observation, deterministic=True)[0])
        decision = policy.decide(rows)
        assert decision["target_position"].tolist() == [action - 1]
        assert 1 / 3 <= decision["confidence"].iloc[0] <= 1
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated


def test_many_windows_are_decided_at_once(spec_of: Callable[..., ModelSpecification]) -> None:
    """A frame of several windows gives one row for each, the same as one by one."""
    spec = spec_of(window=2, long_only=True)
    policy = exported(spec, mlp_policy(_weights(_agent("relu", [8], fields=10, actions=2)), "relu"))
    names = [*input_example(spec).columns]
    rows = pd.DataFrame(np.random.default_rng(0).normal(0, 30, (20, len(names))), columns=names)
    whole = policy.decide(rows)
    single = pd.concat([policy.decide(rows.iloc[i : i + 2]) for i in range(0, 20, 2)], ignore_index=True)
    pd.testing.assert_frame_equal(whole, single)
    assert set(whole["target_position"]) == {0.0, 1.0}


def test_rows_that_are_no_window_or_no_numbers_are_refused(spec_of: Callable[..., ModelSpecification]) -> None:
    """Half a window and a NaN are errors that say what was expected, and of which column."""
    spec = spec_of(window=2)
    policy = exported(spec, mlp_policy(_weights(_agent("tanh", [4], fields=10)), "tanh"))
    example = input_example(spec)
    with pytest.raises(ValueError, match="expected 2 rows for each decision, got 3"):
        policy.decide(pd.concat([example, example.iloc[:1]]))
    with pytest.raises(ValueError, match="expected 2 rows for each decision, got 0"):
        policy.decide(example.iloc[:0])
    example.loc[1, "trend"] = np.nan
    with pytest.raises(ValueError, match="trend: expected a finite number, row 1 has nan"):
        policy.decide(example)


def test_other_weights_and_taken_names_are_refused(record_of: Callable[..., TrainingRecord]) -> None:
    """Weights of another kind of policy, and a feature called like a column of the account, cannot be exported."""
    with pytest.raises(ValueError, match="without action_net"):
        mlp_policy(
            {"mlp_extractor.policy_net.0.weight": np.zeros((1, 1)), "mlp_extractor.policy_net.0.bias": np.zeros(1)},
            "tanh",
        )
    record = record_of()
    taken = record.data.model_copy(update={"observation_columns": ("rsi", "account_position")})
    with pytest.raises(ValueError, match="account_position"):
        specification(record.model_copy(update={"data": taken}))


def test_a_package_has_the_same_bytes_every_time_and_no_path_of_this_machine(
    record_of: Callable[..., TrainingRecord], tmp_path: Path
) -> None:
    """Packaged in two places, and over a half-made folder, a model is the same, without pickle and our paths."""
    record, policy = record_of(window=2), mlp_policy(_weights(_agent("tanh", [8], fields=10)), "tanh")
    (tmp_path / "second" / "model" / "left").mkdir(parents=True)
    first = package_model(policy, record, MADE, tmp_path / "first" / "model")
    second = package_model(policy, record, MADE, tmp_path / "second" / "model")
    assert folder_digest(first) == folder_digest(second)
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["model"]
    files = {path.relative_to(first).as_posix(): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert {"MLmodel", "predict.py", "artifacts/policy.npz", "artifacts/spec.json"} <= set(files)
    assert not any(name.endswith((".pkl", ".pickle")) for name in files)
    assert not any(str(tmp_path).encode() in data or str(Path.cwd()).encode() in data for data in files.values())
    written = json.loads(files["artifacts/spec.json"])
    assert [entry["column"] for entry in written["normalisation"]] == ["rsi", "still", "trend"]
    assert (written["run_id"], written["data_digest"]) == ("run-1", "f" * 64)


def test_a_package_holds_its_whole_record(record_of: Callable[..., TrainingRecord], tmp_path: Path) -> None:
    """What a child reads from the folder is what was put in, an ancestor of it included."""
    parent = ModelRef(name="eurusd-ppo", version=3)
    record = record_of(window=2).model_copy(update={"parent": parent, "root": parent, "depth": 1})
    policy = mlp_policy(_weights(_agent("tanh", [8], fields=10)), "tanh")
    folder = package_model(policy, record, MADE, tmp_path / "model")
    assert read_record(folder) == record
    described = (folder / "MLmodel").read_text()
    assert "parent: eurusd-ppo/3" in described
    assert f"uri: {RECORD_FILE}" in described


def test_another_policy_or_record_has_another_digest(record_of: Callable[..., TrainingRecord], tmp_path: Path) -> None:
    """One altered weight is another model, and so is one more step in its record."""
    record, weights = record_of(window=2), _weights(_agent("tanh", [8], fields=10))
    digests = set()
    for change, steps in ((0.0, 1), (1e-3, 1), (0.0, 2)):
        policy = mlp_policy(weights | {"action_net.bias": weights["action_net.bias"] + np.float32(change)}, "tanh")
        told = record.model_copy(update={"steps": steps})
        digests.add(folder_digest(package_model(policy, told, MADE, tmp_path / "model")))
    assert len(digests) == 3


def test_every_activation_of_a_request_can_be_exported() -> None:
    """What a request may name, the exported code can compute."""
    choices = AgentSettings().hyperparameters.model_json_schema()["properties"]["activation_fn"]["enum"]
    assert sorted(choices) == sorted(ACTIVATIONS)
    for name in choices:
        mlp_policy(_weights(_agent(name, [2])), name).action(np.zeros(12, dtype=np.float32))
