import hashlib
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO

from training_fsm.core.agent import make_agent, pin_torch, vectorise
from training_fsm.core.checkpoint import load_checkpoint, load_parent, read_policy, save_checkpoint
from training_fsm.core.market_data import market_data
from training_fsm.core.trading_env import TradingEnv
from training_fsm.core.training_loop import rollouts
from training_fsm.core.training_state import EVERY_PART, layers
from training_fsm.domain.errors import ArtifactDamaged, ParentUnfit, ResumeImpossible
from training_fsm.domain.facts import Artifact, ModelRef
from training_fsm.domain.hyperparameters import AgentSettings, PPOHyperparameters
from training_fsm.domain.lineage import Parent, Part
from training_fsm.domain.request import EnvironmentConfig, PriceColumns

SETTINGS = AgentSettings(
    n_envs=2,
    net_arch=(8,),
    total_timesteps=256,
    hyperparameters=PPOHyperparameters(n_steps=64, batch_size=32, n_epochs=2),
)
DIGEST = "a" * 64


def new_agent(agent_settings: AgentSettings = SETTINGS) -> PPO:
    """An untrained agent over noise, with fills that draw random numbers."""
    generator = np.random.default_rng(4)
    frame = pd.DataFrame({"feature": generator.normal(size=300), "atr": 1.0})
    frame["close"] = 100 * np.exp(np.cumsum(generator.normal(0, 0.01, 300)))
    market = market_data(frame, PriceColumns(close="close", atr="atr"), ("feature",))
    config = EnvironmentConfig(slippage_atr_based=0.1, slippage_against_trade_probability=0.5, episode_bars=50)
    pin_torch(agent_settings)
    envs = [TradingEnv(market, config) for _ in range(agent_settings.n_envs)]
    return make_agent(agent_settings, vectorise(envs, agent_settings))


def train(agent: PPO, until: int) -> None:
    """Train to so many steps."""
    for _ in rollouts(agent, until, lambda _step, _rate: None):
        pass


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint after two of four rollouts, and its sha256."""
    path = tmp_path_factory.mktemp("spool") / "checkpoint.zip"
    agent = new_agent()
    train(agent, 256)
    return path, save_checkpoint(path, agent, DIGEST)


def test_digest_is_that_of_the_file(stored: tuple[Path, str]) -> None:
    """What save returns is the file's sha256, and nothing else is left in the folder."""
    path, sha256 = stored
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert list(path.parent.iterdir()) == [path]


def test_load_then_save_gives_the_same_bytes(stored: tuple[Path, str], tmp_path: Path) -> None:
    """Nothing is lost on the way: a restored agent's checkpoint is the checkpoint it was restored from."""
    path, sha256 = stored
    agent = new_agent(SETTINGS.model_copy(update={"seed": 99}))
    assert load_checkpoint(path, agent, DIGEST, sha256) == 256
    assert save_checkpoint(tmp_path / "again.zip", agent, DIGEST) == sha256


def test_restored_agent_trains_as_the_old_one(stored: tuple[Path, str], tmp_path: Path) -> None:
    """Two more rollouts after a restore, and the same two in one go."""
    path, _ = stored
    whole, restored = new_agent(), new_agent()
    train(whole, 512)
    expected = save_checkpoint(tmp_path / "whole.zip", whole, DIGEST)
    # whatever the process did in between
    random.seed(77)
    np.random.seed(77)
    torch.manual_seed(77)
    load_checkpoint(path, restored, DIGEST)
    train(restored, 512)
    assert save_checkpoint(tmp_path / "restored.zip", restored, DIGEST) == expected


def test_weights_can_be_read_alone(stored: tuple[Path, str]) -> None:
    """The policy's state_dict as arrays, equal to a restored agent's."""
    path, sha256 = stored
    agent = new_agent()
    load_checkpoint(path, agent)
    weights = read_policy(path, sha256)
    state = agent.policy.state_dict()
    assert set(weights) == set(state)
    assert all(np.array_equal(weights[name], state[name].numpy()) for name in state)


def test_only_safe_formats(stored: tuple[Path, str]) -> None:
    """A stored zip of two safetensors, an npz that loads without pickle, and JSON without wall time."""
    path, _ = stored
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename for entry in archive.infolist()]
        assert names == ["policy.safetensors", "optimizer.safetensors", "state.npz", "state.json"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        with archive.open("state.npz") as file, np.load(file, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind in "bfiu" for name in arrays.files)
        state = json.loads(archive.read("state.json"))
    assert state["request_digest"] == DIGEST
    assert state["num_timesteps"] == 256
    assert len(state["environments"]) == 2
    assert {key for record in state["episodes"] for key in record} == {"r", "l", "cumulative_profit"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_altered_byte_is_noticed(stored: tuple[Path, str], data: st.DataObject) -> None:
    """Any byte changed anywhere, and without a digest to compare with: damaged, not a wrong resume."""
    path, _ = stored
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    altered = path.parent.parent / "altered.zip"
    altered.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"altered\.zip"):
        read_policy(altered)


def test_words_do_not_quote_the_file(stored: tuple[Path, str], tmp_path: Path) -> None:
    """A name's length that is wrong makes zipfile quote kilobytes, which must not end up in an event."""
    content = bytearray(stored[0].read_bytes())
    content[27] ^= 29  # high byte of the first name's length
    (tmp_path / "altered.zip").write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"altered\.zip is torn: File name") as error:
        read_policy(tmp_path / "altered.zip")
    assert len(error.value.failure.words) < 2_000
    assert error.value.failure.words.isprintable()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_torn_file_is_noticed(stored: tuple[Path, str], data: st.DataObject) -> None:
    """A file cut short anywhere, or with something after it."""
    path, _ = stored
    content = path.read_bytes()
    kept = data.draw(st.integers(0, len(content) - 1))
    torn = path.parent.parent / "torn.zip"
    for damaged in (content[:kept], content + content[:kept] + b"x"):
        torn.write_bytes(damaged)
        with pytest.raises(ArtifactDamaged, match=r"torn\.zip"):
            load_checkpoint(torn, new_agent_once())


def new_agent_once() -> PPO:
    """One agent for all examples: a damaged file never touches it."""
    if not _AGENTS:
        _AGENTS.append(new_agent())
    return _AGENTS[0]


_AGENTS: list[PPO] = []


def test_other_bytes_than_named_are_damaged(stored: tuple[Path, str], tmp_path: Path) -> None:
    """A whole checkpoint that is not the one asked for, and one that is gone."""
    path, _ = stored
    with pytest.raises(ArtifactDamaged, match="expected b"):
        load_checkpoint(path, new_agent(), DIGEST, sha256="b" * 64)
    with pytest.raises(ArtifactDamaged, match="No such file"):
        load_checkpoint(tmp_path / "gone.zip", new_agent(), DIGEST)


def test_checkpoint_of_another_request_is_refused(stored: tuple[Path, str]) -> None:
    """Another request's digest, another network, another number of environments."""
    path, _ = stored
    with pytest.raises(ResumeImpossible, match="belongs to request aaaa"):
        load_checkpoint(path, new_agent(), "b" * 64)
    with pytest.raises(ResumeImpossible, match="does not fit this agent"):
        load_checkpoint(path, new_agent(SETTINGS.model_copy(update={"net_arch": (16,)})))
    with pytest.raises(ResumeImpossible, match="2 environments, this agent has 3"):
        load_checkpoint(path, new_agent(SETTINGS.model_copy(update={"n_envs": 3})))


def parent_of(stored: tuple[Path, str]) -> Parent:
    """The stored checkpoint as that of a registered model."""
    path, sha256 = stored
    return Parent(
        kind="training_fsm",
        model=ModelRef(name="noise", version=1),
        digest="d" * 64,
        checkpoint=Artifact(uri="memory:", sha256=sha256, size_bytes=path.stat().st_size),
        steps=256,
        record=None,
    )


def parts_of(agent: PPO) -> dict[Part, str]:
    """What each part of an agent holds, to be compared."""
    normalise, monitor, vector = layers(agent)
    statistics, moments = normalise.ret_rms, agent.policy.optimizer.state_dict()["state"]
    return {
        "weights": repr({name: value.tolist() for name, value in agent.policy.state_dict().items()}),
        "optimizer": repr([sorted((k, v.tolist()) for k, v in moments[index].items()) for index in sorted(moments)]),
        "steps": repr((agent.num_timesteps, agent._n_updates)),
        "reward_normalisation": repr((float(statistics.mean), float(statistics.var), float(statistics.count))),
        "generators": repr((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())),
        "environments": repr(
            (
                [env.get_state() for env in vector.envs],
                agent._last_obs,
                agent.ep_info_buffer,
                normalise.returns,
                monitor.episode_lengths if agent._last_obs is not None else None,
            )
        ),
    }


@pytest.mark.parametrize("left_out", sorted(EVERY_PART))
def test_each_part_goes_on_alone(left_out: Part, stored: tuple[Path, str]) -> None:
    """The part that is left out stays as it was made, every other one is the parent's."""
    path, _ = stored
    whole = new_agent()
    load_checkpoint(path, whole)
    parents = parts_of(whole)
    agent = new_agent(SETTINGS.model_copy(update={"seed": 99}))
    anew = parts_of(agent)
    assert all(anew[part] != parents[part] for part in EVERY_PART)
    load_parent(path, agent, parent_of(stored), EVERY_PART - {left_out})
    assert parts_of(agent) == parents | {left_out: anew[left_out]}


def test_parent_that_does_not_fit(stored: tuple[Path, str]) -> None:
    """Environments of another number are an error where they are to go on, and none where they begin anew."""
    path, _ = stored
    three = SETTINGS.model_copy(update={"n_envs": 3})
    with pytest.raises(ParentUnfit, match="does not fit this run: 2 environments, this agent has 3"):
        load_parent(path, new_agent(three), parent_of(stored), EVERY_PART)
    agent = new_agent(three)
    load_parent(path, agent, parent_of(stored), EVERY_PART - {"environments"})
    assert agent.num_timesteps == 256
