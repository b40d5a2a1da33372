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
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from stable_baselines3 import PPO

from training_fsm.core.training_state import TrainingCounters, arrays_of, counters_of, restore
from training_fsm.domain.errors import ArtifactDamaged, ResumeImpossible
from training_fsm.domain.facts import Failure

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
    members = _read(path, sha256)
    try:
        counters = TrainingCounters.model_validate_json(members[_COUNTERS])
        with np.load(io.BytesIO(members[_ARRAYS]), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        policy = safetensors.torch.load(members[_POLICY])
        moments = safetensors.torch.load(members[_OPTIMIZER])
    except (ValidationError, ValueError, KeyError, OSError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise _damaged(path, f"cannot be read: {_words(error)}") from error
    if request_digest is not None and counters.request_digest != request_digest:
        words = f"checkpoint {path.name} belongs to request {counters.request_digest[:12]}, not {request_digest[:12]}"
        raise ResumeImpossible(Failure(kind="resume_impossible", words=words))
    try:
        agent.policy.load_state_dict(policy)
        _restore_optimizer(agent, moments)
        restore(agent, counters, arrays)
    except (RuntimeError, ValueError, KeyError) as error:
        words = f"checkpoint {path.name} does not fit this agent: {_words(error)}"
        raise ResumeImpossible(Failure(kind="resume_impossible", words=words)) from error
    return agent.num_timesteps


def read_policy(path: Path, sha256: str | None = None) -> dict[str, NDArray[np.float32]]:
    """The policy's weights alone, under the names of SB3's state_dict. Raises ArtifactDamaged."""
    members = _read(path, sha256)
    try:
        return safetensors.numpy.load(members[_POLICY])
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise _damaged(path, f"cannot be read: {_words(error)}") from error


def _restore_optimizer(agent: PPO, moments: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = agent.policy.optimizer.state_dict()["param_groups"]
    agent.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})


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
        raise _damaged(path, f"is torn: {_words(error)}") from error
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


def _words(error: Exception) -> str:
    """What a library says, without the file's bytes that it may quote: words end up in events."""
    return ascii(str(error)[:_LONGEST_WORDS])[1:-1]


def _damaged(path: Path, words: str) -> ArtifactDamaged:
    return ArtifactDamaged(Failure(kind="artifact_damaged", words=f"checkpoint {path.name} {words}"))
