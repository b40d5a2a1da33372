"""The settings inside a Stable-Baselines3 zip, as fields of a training request.

Some of them are pickles, and reading a pickle runs what its author wrote: this is for trusted bytes only.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import JsonValue
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import FlattenExtractor

from training_fsm.core.agent import ACTIVATIONS
from training_fsm.core.checkpoint import words_of
from training_fsm.domain.errors import ParentUnfit
from training_fsm.domain.facts import Failure

SETTINGS = "data"
"""The member of the zip that holds them."""
_PLAIN = (
    "n_steps",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "use_sde",
    "sde_sample_freq",
    "target_kl",
)
_SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
_NEEDED = (*_PLAIN, *_SCHEDULED, "batch_size", "n_envs", "policy_kwargs")
_OPTIONAL = ("seed", "_stats_window_size")
_NAMES_SHOWN = 4


def agent_fields(data: bytes, net_arch: Sequence[int]) -> dict[str, JsonValue]:
    """`agent` of a training request. Schedules that change while training are left out, only constant ones are taken.

    Unpickles what it needs and nothing else. Raises ParentUnfit where that cannot be read or is not PPO's MlpPolicy.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = json.loads(archive.read(SETTINGS))
        unread = {name: None for name in names if name not in _NEEDED + _OPTIONAL}
        settings, _, _ = load_from_zip_file(io.BytesIO(data), custom_objects=unread, device="cpu")
    except Exception as error:  # pickles run code of others, which may raise anything
        raise unfit(f"holds settings that cannot be read: {type(error).__name__}: {words_of(error)}") from error
    assert settings is not None, "the member is there"
    return _fields(settings, net_arch)


def shown(names: Sequence[str]) -> str:
    """The first names, printable and short: they come from a file that anyone may have written."""
    first = [ascii(name[:80])[1:-1] for name in names[:_NAMES_SHOWN]]
    return ", ".join([*first, f"and {len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else first)


def unfit(words: str) -> ParentUnfit:
    """The error for a file that cannot be continued."""
    return ParentUnfit(Failure(kind="parent_unfit", words=f"the parent's file {words}"))


def _fields(settings: Mapping[str, object], net_arch: Sequence[int]) -> dict[str, JsonValue]:
    missing = [name for name in _NEEDED if name not in settings]
    if missing:
        raise unfit(f"is of another algorithm or version: no {shown(missing)} to be read, expected PPO's MlpPolicy")
    chosen: dict[str, JsonValue] = {name: _number(name, settings[name]) for name in _PLAIN}
    chosen |= _policy_fields(settings["policy_kwargs"])
    for name in _SCHEDULED:
        constant = _constant(name, settings[name])
        if constant is not None:
            chosen[name] = constant
    n_envs, n_steps, batch_size = (_count(name, settings[name]) for name in ("n_envs", "n_steps", "batch_size"))
    # SB3 lets a minibatch be larger than the rollout, and then takes the rollout
    chosen["batch_size"] = min(batch_size, n_envs * n_steps)
    chosen["stats_window_size"] = _count("stats_window_size", settings.get("_stats_window_size", 100))
    agent: dict[str, JsonValue] = {"name": "PPO", "net_arch": [*net_arch], "n_envs": n_envs, "hyperparameters": chosen}
    if settings.get("seed") is not None:
        agent["seed"] = _count("seed", settings["seed"])
    return agent


def _policy_fields(policy_kwargs: object) -> dict[str, JsonValue]:
    given = policy_kwargs if isinstance(policy_kwargs, dict) else {}
    extractor = given.get("features_extractor_class", FlattenExtractor)
    if extractor is not FlattenExtractor:
        raise unfit(f"is of another algorithm or policy: features by {extractor!r}, expected PPO's MlpPolicy")
    activation = given.get("activation_fn", torch.nn.Tanh)
    names = [name for name, function in ACTIVATIONS.items() if function is activation]
    if not names:
        raise unfit(f"has activation_fn {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    return {"activation_fn": names[0], "ortho_init": bool(given.get("ortho_init", True))}


def _constant(name: str, value: object) -> bool | int | float | None:
    """The number, or what a schedule gives at every point; None where that changes."""
    points = [value(remaining) for remaining in np.linspace(1.0, 0.0, 11)] if callable(value) else [value]
    numbers = {_number(name, point) for point in points}
    return numbers.pop() if len(numbers) == 1 else None


def _number(name: str, value: object) -> bool | int | float | None:
    number = value.item() if isinstance(value, np.generic) else value
    if number is None or isinstance(number, bool | int | float):
        return number
    raise unfit(f"has {name} {ascii(value)[:80]}, expected a number")


def _count(name: str, value: object) -> int:
    number = _number(name, value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise unfit(f"has {name} {ascii(value)[:80]}, expected a whole number")
    return number
