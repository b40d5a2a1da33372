"""From a checkpoint's policy weights to a model folder that plain MLflow loads, with numpy instead of torch."""

import json
import shutil
import uuid
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training_fsm.client.mlflow_connection import set_mlflow_defaults
from training_fsm.client.model_folder import RECORD_FILE
from training_fsm.core.exported_model import exported_policy
from training_fsm.core.exported_model.exported_policy import ExportedPolicy, Floats, MlpPolicy
from training_fsm.core.market_data import OBSERVATION_BOUND
from training_fsm.core.trading_env import ACCOUNT_FIELDS, BARS_IN_TRADE_UNIT
from training_fsm.domain.facts import ColumnNormalisation
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.model import Model

_CODE = Path(exported_policy.__file__)
_PREDICT = _CODE.with_name("predict.py")
_REQUIREMENTS = ("mlflow", "numpy", "pandas")


class AccountField(Model):
    """A column that describes the account, and the number that the policy sees it divided by."""

    column: str
    unit: float


class ModelSpecification(Model):
    """spec.json of an exported model: all that its numbers mean."""

    format: int = 1
    run_id: str
    model: str
    symbol: str
    timeframe: str
    agent: str
    window: int
    normalisation: tuple[ColumnNormalisation, ...]
    """The features in order, with mean and deviation over the training rows."""
    account_fields: tuple[AccountField, ...]
    observation_bound: float
    activation: str
    net_arch: tuple[int, ...]
    long_only: bool
    positions: tuple[float, ...]
    """Target position of each action, times the largest open position's share of equity."""
    max_percentage_open_position: float
    feature_config: FeatureConfigVersionInfo
    data_digest: str


def mlp_policy(weights: Mapping[str, NDArray[np.float32]], activation: str) -> MlpPolicy:
    """The policy half of an SB3 MlpPolicy's state_dict.

    Raises ValueError where the weights are not those of one, as an agent with another policy would give.
    """
    hidden = sorted(int(name.split(".")[2]) for name in weights if _is_hidden(name))
    names = [*(f"mlp_extractor.policy_net.{index}" for index in hidden), "action_net"]
    missing = [name for name in names if f"{name}.weight" not in weights or f"{name}.bias" not in weights]
    if missing:
        raise ValueError(f"policy weights: expected those of an MlpPolicy, without {', '.join(missing)}")
    layers = tuple((_float32(weights[f"{name}.weight"]), _float32(weights[f"{name}.bias"])) for name in names)
    return MlpPolicy(layers=layers, activation=activation)


def specification(record: TrainingRecord) -> ModelSpecification:
    """What spec.json says. Raises ValueError where a feature has the name of an account column."""
    request, frozen = record.request, record.data
    units = {"bars_in_trade": BARS_IN_TRADE_UNIT}
    account = tuple(AccountField(column=f"account_{name}", unit=units.get(name, 1.0)) for name in ACCOUNT_FIELDS)
    taken = {field.column for field in account} & set(frozen.observation_columns)
    if taken:
        raise ValueError(f"feature names: {', '.join(sorted(taken))} are the account's columns in an exported model")
    statistics = {entry.column: entry for entry in frozen.normalisation}
    return ModelSpecification(
        run_id=record.run_id,
        model=request.model,
        symbol=request.symbol,
        timeframe=request.timeframe.value,
        agent=request.agent.name,
        window=request.env.window,
        normalisation=tuple(statistics[column] for column in frozen.observation_columns),
        account_fields=account,
        observation_bound=OBSERVATION_BOUND,
        activation=request.agent.hyperparameters.activation_fn,
        net_arch=request.agent.net_arch,
        long_only=request.env.long_only,
        positions=(0.0, 1.0) if request.env.long_only else (-1.0, 0.0, 1.0),
        max_percentage_open_position=request.env.max_percentage_open_position,
        feature_config=record.feature_config,
        data_digest=frozen.digest,
    )


def exported(spec: ModelSpecification, policy: MlpPolicy) -> ExportedPolicy:
    """The policy as a loaded model would decide."""
    return exported_policy.build(json.loads(spec.model_dump_json()), policy.layers)


def package_model(policy: MlpPolicy, record: TrainingRecord, created_at: datetime, folder: Path) -> Path:
    """Write a complete MLflow model folder and return it; what was at `folder` before is replaced.

    `training.json` in it is the record, all that a child needs; MLflow and inference do not read it.

    The same arguments give the same bytes under the same versions of Python, MLflow, numpy and pandas: MLflow's
    creation time is `created_at` and its uuid follows from the run's id.
    """
    set_mlflow_defaults()
    import mlflow.pyfunc
    from mlflow.models import Model as MlflowModel

    spec = specification(record)
    parts = folder.with_name(f".{folder.name}.parts")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    for left_over in (parts, unfinished, folder):
        shutil.rmtree(left_over, ignore_errors=True)
    parts.mkdir(parents=True)
    (parts / "spec.json").write_text(spec.model_dump_json(indent=1), encoding="utf-8")
    written = parts / Path(RECORD_FILE).name
    written.write_text(record.model_dump_json(indent=1), encoding="utf-8")
    _save_weights(parts / "policy.npz", policy)
    example = input_example(spec)
    mlflow.pyfunc.save_model(
        path=str(unfinished),
        python_model=str(_PREDICT),
        artifacts={
            "code": str(_CODE),
            "specification": str(parts / "spec.json"),
            "weights": str(parts / "policy.npz"),
            "record": str(written),
        },
        mlflow_model=MlflowModel(
            utc_time_created=created_at.isoformat(),
            model_uuid=uuid.uuid5(uuid.NAMESPACE_URL, f"training_fsm:{spec.run_id}").hex,
        ),
        signature=_signature(spec),
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        metadata={
            "run_id": spec.run_id,
            "symbol": spec.symbol,
            "timeframe": spec.timeframe,
            "data_digest": spec.data_digest,
            "parent": None if record.parent is None else str(record.parent),
            "feature_config_version_info": spec.feature_config.model_dump(mode="json"),
        },
    )
    shutil.rmtree(parts)
    _forget_paths(unfinished / "MLmodel")
    return unfinished.rename(folder)


def input_example(spec: ModelSpecification) -> pd.DataFrame:
    """One window at the training rows' means, the account flat."""
    columns = {entry.column: [entry.mean] * spec.window for entry in spec.normalisation}
    columns |= {field.column: [0.0] * spec.window for field in spec.account_fields}
    return pd.DataFrame(columns, dtype=np.float64)


def _signature(spec: ModelSpecification) -> object:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = [entry.column for entry in spec.normalisation] + [field.column for field in spec.account_fields]
    return ModelSignature(
        inputs=Schema([ColSpec("double", name) for name in inputs]),
        outputs=Schema([ColSpec("double", "target_position"), ColSpec("double", "confidence")]),
    )


def _forget_paths(description: Path) -> None:
    """MLflow notes where it copied files from; that is this machine's business."""
    from mlflow.models import Model as MlflowModel

    described = MlflowModel.load(str(description))
    flavor = described.flavors["python_function"]
    flavor["model_code_path"] = _PREDICT.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    described.save(str(description))


def _save_weights(path: Path, policy: MlpPolicy) -> None:
    arrays: dict[str, Floats] = {}
    for index, (weights, bias) in enumerate(policy.layers):
        arrays |= {f"weights_{index}": weights, f"bias_{index}": bias}
    np.savez(path, allow_pickle=False, **arrays)


def _is_hidden(name: str) -> bool:
    return name.startswith("mlp_extractor.policy_net.") and name.endswith(".weight")


def _float32(array: NDArray[np.float32]) -> Floats:
    return np.ascontiguousarray(array, dtype=np.float32)
