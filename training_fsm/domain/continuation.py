"""What a continued run trains: the parent's request with the asker's changes, and how much of its training goes on."""

import json
from collections.abc import Mapping
from datetime import datetime

from pydantic import JsonValue, ValidationError

from training_fsm.domain.changes import changeable
from training_fsm.domain.errors import ParentUnfit
from training_fsm.domain.events import ParentResolved
from training_fsm.domain.explain import explain
from training_fsm.domain.facts import Failure, StoredData
from training_fsm.domain.features import FeatureConfigRequest, definitions_hash
from training_fsm.domain.lineage import Change, Inheritance, Parent, Part, Reset
from training_fsm.domain.request import MERGED, ContinueRequest, TrainingRequest, completed

UNCHANGEABLE = (
    "agent.name",
    "agent.net_arch",
    "agent.hyperparameters.activation_fn",
    "env.long_only",
    "env.window",
)
"""Fields on which the shapes of weights, observations and actions depend."""


def resolve(
    asked: ContinueRequest, parent: Parent, now: datetime, inherited: Mapping[str, JsonValue] | None = None
) -> ParentResolved:
    """What is trained: the parent's request, or `inherited` where it has none, with what the asker changes.

    Raises ParentUnfit, with a line for each field and both its sides, where the two do not fit together.
    """
    record = parent.record
    base: dict[str, JsonValue] = dict(inherited or {})
    if record is not None:
        base = record.request.model_dump(mode="json")
    elif parent.model is not None:
        base |= {"model": parent.model.name}
    try:
        request = completed(asked, base)
    except ValidationError as error:
        lines = explain(error)
        words = f"the request does not fit the parent: {'; '.join(lines)}"
        raise ParentUnfit(Failure(kind="parent_unfit", words=words, field=lines[0].split(":")[0])) from error
    _check_unchanged(base, request)
    return ParentResolved(
        parent=parent,
        request=request,
        feature_config=request.features.versioned(now) if record is None else record.feature_config,
        changes=changes_between(None if record is None else record.request, request),
    )


def changes_between(before: TrainingRequest | None, after: TrainingRequest) -> tuple[Change, ...]:
    """Every field in which two requests differ, by path; all fields where there is no `before`."""
    old, new = ({} if request is None else _leaves(request) for request in (before, after))
    return tuple(
        Change(field=field, parent=old.get(field), child=new.get(field))
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    )


def inheritance(parent: Parent, request: TrainingRequest, data: StoredData) -> Inheritance:
    """What goes on and what begins anew, given the frozen data of the child.

    Environments go on only where every bar, cost and seed is the parent's: their states are rows of its data.
    """
    reset: dict[Part, str] = {}
    record = parent.record
    if record is None:
        why = "a Stable-Baselines3 zip does not hold them"
        if parent.kind == "sb3_weights":
            reset |= dict.fromkeys(("optimizer", "steps"), "only the weights of the zip are read")
        reset |= dict.fromkeys(("reward_normalisation", "generators", "environments"), why)
    else:
        before = record.request
        if before.agent.seed != request.agent.seed:
            reset["generators"] = f"agent.seed {before.agent.seed} / {request.agent.seed}"
        elif before.agent.device.partition(":")[0] != request.agent.device.partition(":")[0]:
            reset["generators"] = f"agent.device {before.agent.device} / {request.agent.device}"
        differing = [
            name
            for name, differs in (
                ("data", record.data.digest != data.digest),
                ("data.columns", before.data.columns != request.data.columns),
                ("split", record.data.bounds.training != data.bounds.training),
                ("observed columns", record.data.observation_columns != data.observation_columns),
                ("normalisation", record.data.normalisation != data.normalisation),
                ("env", before.env != request.env),
                ("agent.n_envs", before.agent.n_envs != request.agent.n_envs),
                ("agent.seed", before.agent.seed != request.agent.seed),
            )
            if differs
        ]
        if differing:
            reset["environments"] = f"other {', '.join(differing)}"
    parts: tuple[Part, ...] = (
        "weights",
        "optimizer",
        "steps",
        "reward_normalisation",
        "generators",
        "environments",
    )
    return Inheritance(
        carried=tuple(part for part in parts if part not in reset),
        reset=tuple(Reset(part=part, why=reset[part]) for part in parts if part in reset),
    )


def _check_unchanged(inherited: Mapping[str, JsonValue], request: TrainingRequest) -> None:
    """Of a zip only some of the fields are known."""
    old, new = (_shapes(fields) for fields in (inherited, request.model_dump(mode="json")))
    wrong = [name for name, value in old.items() if value != new[name]]
    if wrong:
        sides = "; ".join(f"{name}: the parent has {old[name]}, the request {new[name]}" for name in wrong)
        raise ParentUnfit(
            Failure(kind="parent_unfit", words=f"what may not change differs: {sides}", field=", ".join(wrong))
        )


def _shapes(request: Mapping[str, JsonValue]) -> dict[str, str]:
    """The fields of a request in JSON that may not change, as far as it has them."""
    fields = changeable(TrainingRequest, request, MERGED)
    found = {name: json.dumps(fields[name]) for name in UNCHANGEABLE if name in fields}
    if "features" in request:
        features = FeatureConfigRequest.model_validate(request["features"])
        found["features.semver"] = features.semver
        found["features.hash"] = definitions_hash(features.feature_definitions)
    return found


def _leaves(request: TrainingRequest) -> dict[str, str]:
    fields = changeable(TrainingRequest, request.model_dump(mode="json", exclude={"mode", "features"}), MERGED)
    return {name: json.dumps(value) for name, value in fields.items() if value is not None}
