"""One file per checkpoint: everything that the rest of a training depends on, without pickle.

A zip, stored and not compressed, with fixed timestamps, so that equal state has equal bytes:

    policy.safetensors      the policy's state_dict
    optimizer.safetensors   its moments and step counts, `<parameter>.<name>`
    state.npz               generators, running statistics, last observations
    state.json              format, counters, each environment's state, episode records
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from stable_baselines3 import PPO

from training_fsm.core.agent import set_moments, set_weights
from training_fsm.core.training_state import EVERY_PART, Arrays, TrainingCounters, arrays_of, counters_of, restore
from training_fsm.domain.errors import ArtifactDamaged, ParentUnfit, ResumeImpossible
from training_fsm.domain.facts import Failure
from training_fsm.domain.lineage import Parent, Part

_POLICY, _OPTIMIZER, _ARRAYS, _COUNTERS = "policy.safetensors", "optimizer.safetensors", "state.npz", "state.json"
_LONGEST_WORDS = 300
_MEMBERS = (_POLICY, _OPTIMIZER, _ARRAYS, _COUNTERS)


def save_checkpoint(path: Path, agent: PPO, request_digest: str) -> str:
    """Write the agent's whole state, between two rollouts, and return the file's sha256.

    When this returns the bytes are on disk under `path`; before, there is nothing or the old file under it.
    """
    optimizer = agent.policy.optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": value for index, values in optimizer.items() for name, value in values.items()}
    arrays = io.BytesIO()
    np.savez(arrays, allow_pickle=False, **arrays_of(agent))
    data = _pack(
        {
            _POLICY: safetensors.torch.save(_plain(agent.policy.state_dict())),
            _OPTIMIZER: safetensors.torch.save(_plain(moments)),
            _ARRAYS: arrays.getvalue(),
            _COUNTERS: counters_of(agent, request_digest).model_dump_json(indent=1).encode(),
        }
    )
    _write_durably(path, data)
    return hashlib.sha256(data).hexdigest()


def load_checkpoint(path: Path, agent: PPO, request_digest: str | None = None, sha256: str | None = None) -> int:
    """Bring a newly made agent of the same request, its environments included, to the file's state.

    Returns the environment steps done. Raises ArtifactDamaged where the bytes are gone, torn or altered, and
    ResumeImpossible where they are whole and belong to another request (not asked where that is None).
    """
    stored = _stored(path, sha256)
    owner = stored.counters.request_digest
    if request_digest is not None and owner != request_digest:
        words = f"checkpoint {path.name} belongs to request {owner[:12]}, not {request_digest[:12]}"
        raise ResumeImpossible(Failure(kind="resume_impossible", words=words))
    try:
        stored.put_into(agent, EVERY_PART)
    except (RuntimeError, ValueError, KeyError) as error:
        words = f"checkpoint {path.name} does not fit this agent: {words_of(error)}"
        raise ResumeImpossible(Failure(kind="resume_impossible", words=words)) from error
    return agent.num_timesteps


def load_parent(path: Path, agent: PPO, parent: Parent, parts: frozenset[Part]) -> None:
    """Put the chosen parts of a parent's last checkpoint into a newly made agent of another request.

    Raises ArtifactDamaged where the bytes are not those that the parent names, and ParentUnfit, with names and both
    shapes, where they do not fit the agent.
    """
    stored = _stored(path, parent.checkpoint.sha256)
    steps = stored.counters.num_timesteps
    if "steps" in parts and steps != parent.steps:
        words = f"the parent's checkpoint is at step {steps}, its record says {parent.steps}"
        raise ParentUnfit(Failure(kind="parent_unfit", words=words, field="steps"))
    try:
        stored.put_into(agent, parts)
    except (RuntimeError, ValueError, KeyError) as error:
        words = f"the parent's checkpoint does not fit this run: {words_of(error)}"
        raise ParentUnfit(Failure(kind="parent_unfit", words=words)) from error


def read_policy(path: Path, sha256: str | None = None) -> dict[str, NDArray[np.float32]]:
    """The policy's weights alone, under the names of SB3's state_dict. Raises ArtifactDamaged."""
    members = _read(path, sha256)
    try:
        return safetensors.numpy.load(members[_POLICY])
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise _damaged(path, f"cannot be read: {words_of(error)}") from error


def words_of(error: Exception) -> str:
    """What a library says, without the file's bytes that it may quote: words end up in events."""
    return ascii(str(error)[:_LONGEST_WORDS])[1:-1]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A checkpoint's content, whole and parsed."""

    counters: TrainingCounters
    arrays: Arrays
    weights: Mapping[str, torch.Tensor]
    moments: Mapping[int, Mapping[str, torch.Tensor]]

    def put_into(self, agent: PPO, parts: frozenset[Part]) -> None:
        if "weights" in parts:
            set_weights(agent, self.weights)
        if "optimizer" in parts:
            set_moments(agent, self.moments)
        restore(agent, self.counters, self.arrays, parts)


def _stored(path: Path, sha256: str | None) -> _Stored:
    members = _read(path, sha256)
    try:
        with np.load(io.BytesIO(members[_ARRAYS]), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in safetensors.torch.load(members[_OPTIMIZER]).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        return _Stored(
            counters=TrainingCounters.model_validate_json(members[_COUNTERS]),
            arrays=arrays,
            weights=safetensors.torch.load(members[_POLICY]),
            moments=moments,
        )
    except (ValidationError, ValueError, KeyError, OSError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise _damaged(path, f"cannot be read: {words_of(error)}") from error


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _pack(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # the same on every platform
            archive.writestr(entry, data)
    return buffer.getvalue()


def _read(path: Path, sha256: str | None) -> dict[str, bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise _damaged(path, f"has sha256 {found}, expected {sha256}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in _MEMBERS}
    except (KeyError, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise _damaged(path, f"is torn: {words_of(error)}") from error
    # packing is a function of the members, so this sees every byte that the zip's own sums do not cover
    if _pack(members) != data:
        raise _damaged(path, "was altered")
    return members


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _damaged(path: Path, words: str) -> ArtifactDamaged:
    return ArtifactDamaged(Failure(kind="artifact_damaged", words=f"checkpoint {path.name} {words}"))
