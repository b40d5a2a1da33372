"""Zips that Stable-Baselines3 itself has written, of several algorithms, and some that somebody has tampered with."""

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from training_fsm.core import sb3_zip
from training_fsm.core.agent import make_agent, pin_torch, vectorise
from training_fsm.core.market_data import market_data
from training_fsm.core.sb3_zip import inspect, load_zip
from training_fsm.core.trading_env import TradingEnv
from training_fsm.core.training_loop import rollouts
from training_fsm.domain.errors import ArtifactDamaged, ParentUnfit
from training_fsm.domain.facts import Artifact
from training_fsm.domain.hyperparameters import AgentSettings, PPOHyperparameters
from training_fsm.domain.lineage import Parent, Part
from training_fsm.domain.request import EnvironmentConfig, PriceColumns

FIELDS = 5
"""One feature and four account fields."""
WEIGHTS: frozenset[Part] = frozenset({"weights"})
WHOLE: frozenset[Part] = frozenset({"weights", "optimizer", "steps"})


class Toy(gymnasium.Env[np.ndarray, np.int64]):
    """Noise of the shape that our environment gives."""

    observation_space = spaces.Box(-10.0, 10.0, (FIELDS,), np.float32)
    action_space: spaces.Space[np.int64] = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[np.ndarray, dict[str, object]]:
        super().reset(seed=seed)
        return self._noise(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        return self._noise(), float(self.np_random.normal()), bool(self.np_random.random() < 0.1), False, {}

    def _noise(self) -> np.ndarray:
        return self.np_random.normal(size=FIELDS).astype(np.float32)


class Steered(Toy):
    """The same with continuous actions."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Pictures(Toy):
    """Pictures as observations."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def _noise(self) -> np.ndarray:
        return self.np_random.integers(0, 255, (36, 36, 1)).astype(np.uint8)


def ppo(env: gymnasium.Env | None = None, policy: str = "MlpPolicy", **settings: object) -> PPO:
    """A small PPO that nobody has trained."""
    chosen: dict[str, object] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "device": "cpu", "seed": 3} | settings
    return PPO(policy, Toy() if env is None else env, **chosen)


def saved(agent: BaseAlgorithm, path: Path) -> tuple[Path, str]:
    """The agent's zip and its sha256."""
    agent.save(path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, PPO]:
    """The zip of a PPO after 64 steps, and the PPO."""
    agent = ppo(
        policy_kwargs={"net_arch": {"pi": [8, 8], "vf": [8, 8]}, "activation_fn": torch.nn.ReLU},
        learning_rate=1e-3,
        clip_range=0.3,
        gamma=0.9,
        ent_coef=0.01,
        target_kl=0.5,
    )
    agent.learn(64)
    return *saved(agent, tmp_path_factory.mktemp("zips") / "ppo.zip"), agent


def new_agent(net_arch: tuple[int, ...] = (8, 8), columns: tuple[str, ...] = ("feature",)) -> PPO:
    """An untrained agent of ours over noise."""
    generator = np.random.default_rng(4)
    frame = pd.DataFrame({column: generator.normal(size=200) for column in columns})
    frame["close"] = 100 * np.exp(np.cumsum(generator.normal(0, 0.01, 200)))
    market = market_data(frame, PriceColumns(close="close"), columns)
    small = PPOHyperparameters(n_steps=64, batch_size=32, n_epochs=1)
    settings = AgentSettings(net_arch=net_arch, hyperparameters=small)
    pin_torch(settings)
    return make_agent(settings, vectorise([TradingEnv(market, EnvironmentConfig(episode_bars=20))], settings))


def parent_of(sha256: str, steps: int) -> Parent:
    """A zip as a parent."""
    return Parent(
        kind="sb3_whole" if steps else "sb3_weights",
        model=None,
        digest=sha256,
        checkpoint=Artifact(uri="memory:", sha256=sha256, size_bytes=1),
        steps=steps,
        record=None,
    )


def weights_of(agent: PPO) -> dict[str, list[float]]:
    """Every weight, to be compared."""
    return {name: value.tolist() for name, value in agent.policy.state_dict().items()}


def test_untrusted_zip_says_no_more_than_its_shapes(trained: tuple[Path, str, PPO]) -> None:
    """It is seen to be PPO's MlpPolicy of a certain net, and nothing else of what it says is believed."""
    path, sha256, _ = trained
    found = inspect(path, sha256, trusted=False)
    trusted = inspect(path, sha256, trusted=True).inherited["agent"]
    assert isinstance(trusted, dict)
    assert (found.steps, found.inherited) == (0, {"agent": {"net_arch": trusted["net_arch"]}})


def test_trusted_zip_says_how_it_was_trained(trained: tuple[Path, str, PPO]) -> None:
    """Its settings are fields of a request, and valid ones."""
    path, sha256, _ = trained
    found = inspect(path, sha256, trusted=True)
    assert found.steps == 64
    assert found.inherited == {
        "agent": {
            "name": "PPO",
            "seed": 3,
            "n_envs": 1,
            "net_arch": [8, 8],
            "hyperparameters": {
                "learning_rate": 1e-3,
                "n_steps": 32,
                "batch_size": 16,
                "n_epochs": 2,
                "gamma": 0.9,
                "gae_lambda": 0.95,
                "clip_range": 0.3,
                "normalize_advantage": True,
                "ent_coef": 0.01,
                "vf_coef": 0.5,
                "max_grad_norm": 0.5,
                "use_sde": False,
                "sde_sample_freq": -1,
                "target_kl": 0.5,
                "stats_window_size": 100,
                "activation_fn": "relu",
                "ortho_init": True,
            },
        }
    }
    settings = AgentSettings.model_validate_json(json.dumps(found.inherited["agent"]), strict=True)
    assert settings.hyperparameters.gamma == 0.9


def test_defaults_are_said_too_and_changing_schedules_are_not(tmp_path: Path) -> None:
    """Nothing set but a schedule: SB3's own defaults, no seed, and the learning rate left to the request."""
    agent = PPO("MlpPolicy", Toy(), device="cpu", learning_rate=lambda remaining: 1e-3 * remaining)
    found = inspect(*saved(agent, tmp_path / "ppo.zip"), trusted=True).inherited["agent"]
    assert isinstance(found, dict)
    chosen = found.pop("hyperparameters")
    assert found == {"name": "PPO", "n_envs": 1, "net_arch": [64, 64]}
    assert isinstance(chosen, dict)
    assert "learning_rate" not in chosen
    expected = PPOHyperparameters().model_dump(exclude={"learning_rate", "clip_range_vf"})
    assert PPOHyperparameters.model_validate(chosen).model_dump(exclude={"learning_rate", "clip_range_vf"}) == expected


def test_minibatch_larger_than_the_rollout_is_the_rollout(tmp_path: Path) -> None:
    """SB3 allows it with a warning, a request does not, and the training is the same."""
    with pytest.warns(UserWarning, match="mini-batch"):
        agent = ppo(n_steps=8, batch_size=64)
    found = inspect(*saved(agent, tmp_path / "ppo.zip"), trusted=True).inherited["agent"]
    assert isinstance(found, dict)
    assert AgentSettings.model_validate(found).hyperparameters.batch_size == 8


def test_weights_alone_go_on(trained: tuple[Path, str, PPO]) -> None:
    """The policy is the zip's; the optimizer has nothing and no step is counted."""
    path, sha256, theirs = trained
    agent = new_agent()
    assert weights_of(agent) != weights_of(theirs)
    load_zip(path, agent, parent_of(sha256, 0), WEIGHTS)
    assert weights_of(agent) == weights_of(theirs)
    assert agent.policy.optimizer.state_dict()["state"] == {}
    assert (agent.num_timesteps, agent._n_updates) == (0, 0)


def test_whole_zip_goes_on(trained: tuple[Path, str, PPO]) -> None:
    """Weights, moments and counters are the zip's, and training goes on with them."""
    path, sha256, theirs = trained
    agent = new_agent()
    load_zip(path, agent, parent_of(sha256, 64), WHOLE)
    mine, expected = (one.policy.optimizer.state_dict()["state"] for one in (agent, theirs))
    assert mine.keys() == expected.keys()
    assert all(torch.equal(mine[i][name], expected[i][name]) for i in mine for name in expected[i])
    assert (agent.num_timesteps, agent._n_updates) == (64, theirs._n_updates)
    before = float(mine[0]["step"])
    for _ in rollouts(agent, 128, lambda _step, _rate: None):
        pass
    assert agent.num_timesteps == 128
    assert float(agent.policy.optimizer.state_dict()["state"][0]["step"]) == before + 2


def test_zip_that_does_not_fit_the_run(trained: tuple[Path, str, PPO]) -> None:
    """Another net, another number of columns, and other steps than it was found with."""
    path, sha256, _ = trained
    with pytest.raises(ParentUnfit, match=r"policy_net\.0\.weight: expected \(16, 5\), got \(8, 5\)"):
        load_zip(path, new_agent((16, 8)), parent_of(sha256, 0), WEIGHTS)
    with pytest.raises(ParentUnfit, match=r"policy_net\.0\.weight: expected \(8, 6\), got \(8, 5\)") as error:
        load_zip(path, new_agent(columns=("a", "b")), parent_of(sha256, 0), WEIGHTS)
    assert error.value.failure.kind == "parent_unfit"
    with pytest.raises(ParentUnfit, match="at step 64, 32 was found"):
        load_zip(path, new_agent(), parent_of(sha256, 32), WHOLE)


OTHERS: dict[str, tuple[Callable[[], BaseAlgorithm], str]] = {
    "dqn": (
        lambda: DQN("MlpPolicy", Toy(), buffer_size=10, device="cpu"),
        r"another algorithm or policy: it has q_net\.q_net\.0\.weight, .* more, expected PPO's MlpPolicy",
    ),
    "pictures": (
        lambda: ppo(Pictures(), "CnnPolicy"),
        r"another algorithm or policy: it has .*features_extractor\.cnn\.0\.weight",
    ),
    "continuous": (lambda: ppo(Steered()), r"it has log_std, expected PPO's MlpPolicy for discrete actions"),
    "unequal": (
        lambda: ppo(policy_kwargs={"net_arch": {"pi": [8], "vf": [8, 4]}}),
        r"a policy of \[8\] hidden units and a value function of \[8, 4\], expected equal ones",
    ),
}


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_policies_are_refused(kind: str, trusted: bool, tmp_path: Path) -> None:
    """By the names and shapes of their weights, trusted or not."""
    make, words = OTHERS[kind]
    with pytest.raises(ParentUnfit, match=words):
        inspect(*saved(make(), tmp_path / "other.zip"), trusted)


ADAM = {"optimizer_class": torch.optim.Adam, "optimizer_kwargs": {"eps": 1e-5}}
TRUSTED_OTHERS: dict[str, tuple[Callable[[], BaseAlgorithm], str]] = {
    "a2c": (lambda: A2C("MlpPolicy", Toy(), device="cpu"), r"another optimizer: betas None, expected \(0\.9, 0\.999\)"),
    "a2c with adam": (
        lambda: A2C("MlpPolicy", Toy(), device="cpu", use_rms_prop=False, policy_kwargs=ADAM),
        r"another algorithm or version: no n_epochs, .*clip_range.* to be read, expected PPO",
    ),
    "weight decay": (
        lambda: ppo(policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.01, "eps": 1e-5}}),
        r"another optimizer: weight_decay 0\.01, expected 0",
    ),
    "activation": (
        lambda: ppo(policy_kwargs={"activation_fn": torch.nn.SiLU}),
        r"activation_fn .*SiLU.*, expected one",
    ),
}


@pytest.mark.parametrize("kind", TRUSTED_OTHERS)
def test_what_a_whole_zip_must_have(kind: str, tmp_path: Path) -> None:
    """Weights of the right names are enough for weights alone; going on with all needs the rest to be ours too."""
    make, words = TRUSTED_OTHERS[kind]
    zipped = saved(make(), tmp_path / "other.zip")
    assert inspect(*zipped, trusted=False).inherited.keys() == {"agent"}
    with pytest.raises(ParentUnfit, match=words):
        inspect(*zipped, trusted=True)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (__import__("os").mkdir, (str(self.path),))


def rewritten(source: Path, target: Path, **replaced: bytes) -> tuple[Path, str]:
    """The zip with other bytes in some members, named without their ending."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name.removesuffix(".pth").replace(".", "_"), old.read(name)))
    return target, hashlib.sha256(target.read_bytes()).hexdigest()


def test_pickles_run_only_when_trusted(trained: tuple[Path, str, PPO], tmp_path: Path) -> None:
    """A setting that makes a folder when it is read: not for weights alone, not at training; but for the trusting."""
    path, _, _ = trained
    mark = tmp_path / "was-here"
    with zipfile.ZipFile(path) as archive:
        settings = json.loads(archive.read("data"))
    bomb = base64.b64encode(cloudpickle.dumps(Bomb(mark))).decode()
    for name in ("clip_range", "policy_class", "ep_info_buffer"):
        settings[name] = {":type:": "bomb", ":serialized:": bomb}
    armed, sha256 = rewritten(path, tmp_path / "armed.zip", data=json.dumps(settings).encode())
    inspect(armed, sha256, trusted=False)
    load_zip(armed, new_agent(), parent_of(sha256, 0), WEIGHTS)
    load_zip(armed, new_agent(), parent_of(sha256, 64), WHOLE)
    assert not mark.exists()
    inspect(armed, sha256, trusted=True)
    assert mark.exists()


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_weights_that_are_pickles_are_refused(
    zipped: bool, trusted: bool, trained: tuple[Path, str, PPO], tmp_path: Path
) -> None:
    """A policy.pth that would make a folder, as a bare pickle and in torch's own format."""
    mark, data = tmp_path / "was-here", io.BytesIO()
    torch.save(Bomb(mark), data)
    armed, sha256 = rewritten(
        trained[0], tmp_path / "armed.zip", policy=data.getvalue() if zipped else cloudpickle.dumps(Bomb(mark))
    )
    with pytest.raises(ParentUnfit, match=r"policy\.pth that is no file of tensors"):
        inspect(armed, sha256, trusted)
    with pytest.raises(ParentUnfit, match=r"policy\.pth that is no file of tensors"):
        load_zip(armed, new_agent(), parent_of(sha256, 0), WEIGHTS)
    assert not mark.exists()


def pth(value: object) -> bytes:
    """What torch writes."""
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def test_weights_of_a_strange_kind_are_refused(trained: tuple[Path, str, PPO], tmp_path: Path) -> None:
    """No mapping, no tensors, whole numbers, sparse ones, other dimensions, and names made to be long."""
    good = dict(trained[2].policy.state_dict())
    name = "action_net.weight"
    strange: list[object] = [
        [1, 2],
        {},
        good | {name: "text"},
        good | {name: good[name].to(torch.int64)},
        good | {name: good[name].to_sparse()},
        good | {name: good[name][0]},
        good | {"x" * 100_000: good[name]},
    ]
    for value in strange:
        odd = rewritten(trained[0], tmp_path / "odd.zip", policy=pth(value))
        with pytest.raises(ParentUnfit) as error:
            inspect(*odd, trusted=True)
        assert len(error.value.failure.words) < 1_000


def test_optimizer_of_a_strange_kind_is_refused(trained: tuple[Path, str, PPO], tmp_path: Path) -> None:
    """Moments of other shapes, of parameters that are not there, and none at all."""
    path, _, theirs = trained
    optimizer = theirs.policy.optimizer.state_dict()
    first = optimizer["state"][0]
    strange: list[object] = [
        optimizer | {"state": optimizer["state"] | {0: first | {"exp_avg": torch.zeros(2)}}},
        optimizer | {"state": optimizer["state"] | {99: first}},
        optimizer | {"state": {0: {"square_avg": torch.zeros(2)}}},
        optimizer | {"state": 7},
    ]
    for value in strange:
        odd, sha256 = rewritten(path, tmp_path / "odd.zip", policy_optimizer=pth(value))
        with pytest.raises(ParentUnfit, match="optimizer state"):
            load_zip(odd, new_agent(), parent_of(sha256, 64), WHOLE)


def test_altered_bytes_are_damaged(trained: tuple[Path, str, PPO], tmp_path: Path) -> None:
    """Another byte than was resolved, and a file that is gone: before anything is read of them."""
    path, sha256, _ = trained
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    altered = tmp_path / "altered.zip"
    altered.write_bytes(content)
    for wrong, words in ((altered, f"expected {sha256}"), (tmp_path / "gone.zip", "No such file")):
        with pytest.raises(ArtifactDamaged, match=words):
            inspect(wrong, sha256, trusted=True)
        with pytest.raises(ArtifactDamaged, match=words):
            load_zip(wrong, new_agent(), parent_of(sha256, 0), WEIGHTS)


def test_what_is_no_zip_of_sb3(trained: tuple[Path, str, PPO], tmp_path: Path) -> None:
    """Text, a zip of something else, and a torn one whose digest somebody has registered."""
    other = tmp_path / "other.zip"
    for content, words in (
        (b"text", "is no zip"),
        (_zip_of({"readme.txt": b"hello"}), r"is no Stable-Baselines3 zip: it has no policy\.pth"),
        (_zip_of({"policy.pth": b"text"}), "no file of tensors"),
        (trained[0].read_bytes()[:-30], r"it has no policy\.pth|is no zip"),
    ):
        other.write_bytes(content)
        with pytest.raises(ParentUnfit, match=words):
            inspect(other, hashlib.sha256(content).hexdigest(), trusted=True)


def test_zip_that_unpacks_to_more_than_allowed(
    trained: tuple[Path, str, PPO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, a member of it, and a record inside a member are each bounded."""
    monkeypatch.setattr(sb3_zip, "MAX_BYTES", 100_000)
    outer, inner = io.BytesIO(), _zip_of({"data.pkl": bytes(200_000)})
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", bytes(200_000))
    for content, words in (
        (bytes(100_001), "larger than 100,000 bytes"),
        (outer.getvalue(), r"policy\.pth of 200,000 bytes"),
        (_zip_of({"policy.pth": inner}), "200,000 bytes unpacked"),
    ):
        path = tmp_path / "bomb.zip"
        path.write_bytes(content)
        with pytest.raises(ParentUnfit, match=words):
            inspect(path, hashlib.sha256(content).hexdigest(), trusted=False)


def _zip_of(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()
