"""The model's life after its evaluation: registration under an idempotency key, and aliases that follow the log."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.events import DataFrozen, EvaluationFinished, ModelRegistered
from training_fsm.domain.metrics import HEADLINE_METRICS
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.run import Run
from training_fsm.ports import Models

CANDIDATE = "candidate"
"""Alias of the version that was registered last under a model name."""


class ModelLifecycleService:
    """Registers models and keeps the registry's aliases equal to the log."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def register(self, run: Run, folder: Path) -> ModelRegistered:
        """Make the packaged model a version in the registry, or find the one that an earlier try made.

        The run carries the key of its RegistrationIntended, its data, evaluation and tracking run; ValueError names
        what is missing. Call under the run's lease: the registry cannot refuse a second version of the same key.
        """
        key, tracking_run_id = run.registration_key, run.tracking_run_id
        if key is None or tracking_run_id is None or run.data is None or run.evaluation is None:
            raise ValueError(f"run {run.run_id}: expected key, tracking run, data and evaluation before a registration")
        name = run.request.model
        version = self._models.find(name, key)
        if version is None:
            tags = lineage_tags(run, run.data, run.evaluation)
            version = self._models.register(name, key, folder, tracking_run_id, tags)
        return ModelRegistered(name=name, version=version.version, digest=version.digest)

    def reconcile_aliases(self, candidates: Mapping[str, int]) -> tuple[str, ...]:
        """Point `candidate` of each model name at its version in the log; names of those that had to be moved.

        Repeat it: a crash after ModelRegistered leaves an alias behind, and the next call moves it. Raises
        OutsideUnavailable, after all others were looked at, that names the models whose alias could not be moved.
        """
        moved, failed = [], []
        for name, version in candidates.items():
            try:
                if self._models.alias_version(name, CANDIDATE) != version:
                    self._models.set_alias(name, CANDIDATE, version)
                    moved.append(name)
            except OutsideUnavailable as error:
                failed.append(f"{name}: {error.words}")
        if failed:
            raise OutsideUnavailable("mlflow", "; ".join(failed))
        return tuple(moved)


def registration_key(run: Run) -> str:
    """The idempotency key of a run's registration: the same for every try, another for other weights.

    Raises ValueError before the run has a checkpoint.
    """
    if not run.checkpoints:
        raise ValueError(f"run {run.run_id}: expected a checkpoint before a registration")
    return f"{run.run_id}:{run.checkpoints[-1].artifact.sha256[:16]}"


def lineage_tags(run: Run, data: DataFrozen, evaluation: EvaluationFinished) -> dict[str, str]:
    """Where a model version comes from and what it was worth on the test part."""
    request = run.request
    tags = {
        "run_id": run.run_id,
        "agent": request.agent.name,
        "symbol": request.symbol,
        "timeframe": request.timeframe.value,
        "request_digest": request_digest(request),
        "feature_config_semver": run.feature_config.semver,
        "feature_config_hash": run.feature_config.hash,
        "data_digest": data.digest,
        "code_version": run.fingerprint.training_fsm if run.fingerprint else "unknown",
        "gate_passed": str(evaluation.passed).lower(),
    }
    tags |= {
        f"test_{name}": f"{evaluation.metrics[name]:.6g}" for name in HEADLINE_METRICS if name in evaluation.metrics
    }
    return {f"training_fsm.{name}": value for name, value in tags.items()}


def request_digest(request: TrainingRequest) -> str:
    """sha256 of the request as JSON, hexadecimal."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()
