"""A plain Stable-Baselines3 zip as a parent: its weights, or all of it where the operator trusts its bytes.

The tensors of such a zip are read with torch's restricted unpickler, which runs nothing. Its settings are JSON in which
values may be pickles: whoever reads those runs what their author wrote, so only `inspect` does, and only if trusted.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, Field, JsonValue, ValidationError
from stable_baselines3 import PPO

from training_fsm.core.agent import set_moments, set_weights
from training_fsm.core.checkpoint import words_of
from training_fsm.core.sb3_settings import SETTINGS, agent_fields, shown, unfit
from training_fsm.domain.errors import ArtifactDamaged
from training_fsm.domain.facts import Failure
from training_fsm.domain.lineage import Parent, Part

MAX_BYTES = 1 << 30
"""Of the file, and of each member unpacked."""
_POLICY, _OPTIMIZER = "policy.pth", "policy.optimizer.pth"
_HEADS = ("action_net.weight", "action_net.bias", "value_net.weight", "value_net.bias")
_LAYER = re.compile(r"mlp_extractor\.(?P<half>policy|value)_net\.(?P<index>\d{1,3})\.(weight|bias)")

_ADAM = {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 0, "amsgrad": False, "maximize": False}
"""What every agent of ours is optimised with."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a zip says of its training; nothing where only its weights were read."""

    steps: int
    inherited: dict[str, JsonValue]
    """Fields of a training request, as in its JSON."""


class _Counters(BaseModel):
    """SB3's counters, which are plain JSON."""

    num_timesteps: int = Field(ge=0)
    n_updates: int = Field(alias="_n_updates", ge=0)
    episode_num: int = Field(alias="_episode_num", ge=0)


def inspect(path: Path, sha256: str, trusted: bool) -> Inspected:
    """See whether the file is a zip of PPO's MlpPolicy and, if trusted, what it says; then its pickles are run.

    Untrusted it says only what the shapes of its weights show: the net.
    Learning rates and clip ranges that change while training are not inherited, only constant ones are.
    Raises ArtifactDamaged where the bytes are not those named, and ParentUnfit.
    """
    data = _bytes(path, sha256)
    with _opened(data) as archive:
        arch = _net_arch(_weights(archive))
        if not trusted:
            return Inspected(steps=0, inherited={"agent": {"net_arch": [*arch]}})
        counters = _counters(archive)
        _check_optimizer(_load(archive, _OPTIMIZER))
    return Inspected(steps=counters.num_timesteps, inherited={"agent": agent_fields(data, arch)})


def load_zip(path: Path, agent: PPO, parent: Parent, parts: frozenset[Part]) -> None:
    """Put weights, optimizer and steps, as far as they are among the parts, into a newly made agent; unpickles nothing.

    Raises ArtifactDamaged where the bytes are not those that the parent names, and ParentUnfit.
    """
    with _opened(_bytes(path, parent.checkpoint.sha256)) as archive:
        weights = _weights(archive)
        moments = _moments(_load(archive, _OPTIMIZER)) if "optimizer" in parts else None
        counters = _counters(archive) if "steps" in parts else None
    try:
        set_weights(agent, weights)
        if moments is not None:
            set_moments(agent, moments)
    except (ValueError, RuntimeError) as error:
        raise unfit(f"does not fit this run: {words_of(error)}") from error
    if counters is not None:
        if counters.num_timesteps != parent.steps:
            raise unfit(f"is at step {counters.num_timesteps}, {parent.steps} was found when it was resolved")
        agent.num_timesteps = counters.num_timesteps
        agent._n_updates = counters.n_updates
        agent._episode_num = counters.episode_num


def _bytes(path: Path, sha256: str) -> bytes:
    """The bytes that are hashed are those that are parsed: the file is read once."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise unfit(f"is larger than {MAX_BYTES:,} bytes")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise _damaged(path, f"has sha256 {found}, expected {sha256}")
    return data


def _opened(data: bytes) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise unfit(f"is no zip: {words_of(error)}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise unfit(f"is no Stable-Baselines3 zip: it has no {name}") from error
    if entry.file_size > MAX_BYTES:
        raise unfit(f"holds a {name} of {entry.file_size:,} bytes, expected at most {MAX_BYTES:,}")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise unfit(f"holds a {name} that cannot be read: {words_of(error)}") from error


def _load(archive: zipfile.ZipFile, name: str) -> object:
    data = _member(archive, name)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            unpacked = sum(entry.file_size for entry in inner.infolist())
        if unpacked > MAX_BYTES:
            raise ValueError(f"{unpacked:,} bytes unpacked, expected at most {MAX_BYTES:,}")
        loaded: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes from anywhere make torch raise anything
        raise unfit(f"holds a {name} that is no file of tensors: {words_of(error)}") from error
    return loaded


def _weights(archive: zipfile.ZipFile) -> Tensors:
    """The policy's state_dict, if it is one of PPO's MlpPolicy for discrete actions."""
    loaded = _load(archive, _POLICY)
    names = [str(name) for name in loaded] if isinstance(loaded, dict) else []
    wrong = [name for name in names if name not in _HEADS and not _LAYER.fullmatch(name)]
    missing = [name for name in _HEADS if name not in names]
    if not isinstance(loaded, dict) or wrong or missing:
        found = f"it has {shown(wrong)}" if wrong else f"it lacks {shown(missing)}"
        raise unfit(f"is of another algorithm or policy: {found}, expected PPO's MlpPolicy for discrete actions")
    for name, value in loaded.items():
        _check_tensor(name, value, dimensions=2 if name.endswith(".weight") else 1)
    return {str(name): value for name, value in loaded.items()}


def _check_tensor(name: str, value: object, dimensions: int) -> None:
    plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and value.is_floating_point()
    if not plain or not isinstance(value, torch.Tensor) or value.dim() != dimensions:
        raise unfit(f"holds a {name} that is no plain tensor of {dimensions} dimensions")


def _net_arch(weights: Mapping[str, torch.Tensor]) -> list[int]:
    """Units per hidden layer, which policy and value function must have in common."""
    units: dict[str, dict[int, int]] = {"policy": {}, "value": {}}
    for name, tensor in weights.items():
        layer = _LAYER.fullmatch(name)
        if layer is not None and name.endswith(".weight"):
            units[layer["half"]][int(layer["index"])] = tensor.shape[0]
    policy, value = ([width for _, width in sorted(half.items())] for half in units.values())
    if policy != value:
        raise unfit(f"has a policy of {policy} hidden units and a value function of {value}, expected equal ones")
    return policy


def _counters(archive: zipfile.ZipFile) -> _Counters:
    try:
        return _Counters.model_validate(json.loads(_member(archive, SETTINGS)))
    except (ValidationError, ValueError, RecursionError) as error:
        raise unfit(f"holds counters that cannot be read: {words_of(error)}") from error


def _check_optimizer(loaded: object) -> None:
    groups = loaded.get("param_groups") if isinstance(loaded, dict) else None
    group = groups[0] if isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict) else {}
    other = [f"{name} {group.get(name)}, expected {value}" for name, value in _ADAM.items() if group.get(name) != value]
    if other:
        raise unfit(f"was trained with another optimizer: {shown(other)}")
    _moments(loaded)


def _moments(loaded: object) -> dict[int, Tensors]:
    state = loaded.get("state") if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise unfit("holds no optimizer state")
    for index, values in state.items():
        tensors = isinstance(values, dict) and all(isinstance(value, torch.Tensor) for value in values.values())
        if not isinstance(index, int) or not tensors or values.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise unfit(f"holds optimizer state that is not Adam's, of parameter {ascii(index)[:20]}")
    return state


def _damaged(path: Path, words: str) -> ArtifactDamaged:
    return ArtifactDamaged(Failure(kind="artifact_damaged", words=f"parent {path.name} {words}"))
