"""The model in the registry: a parent found, a version registered once, aliases that follow the log."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from training_fsm.domain.algorithm import require_known
from training_fsm.domain.errors import OutsideUnavailable, ParentUnfit
from training_fsm.domain.events import EvaluationFinished, ModelRegistered
from training_fsm.domain.facts import Failure, StoredData
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.metrics import HEADLINE_METRICS
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.run import Run
from training_fsm.ports import FoundModel, Models

CANDIDATE = "candidate"
"""Alias of the version that was registered last under a model name."""

CHAMPION = "champion"
"""Alias of the version that was promoted last under a model name."""


@dataclass(frozen=True, slots=True)
class FoundParent:
    """A model to continue: its files are here, and are those that were registered."""

    found: FoundModel
    path: Path
    """A folder, or one file."""

    @property
    def digest(self) -> str:
        """sha256 of the folder, as it was checked.

        Raises ParentUnfit where neither the log nor the registry has one: nothing says then what the model was.
        """
        if self.found.digest is None:
            what = self.found.model or self.found.location
            words = f"{what} was not registered by this service: nothing proves that its training.json is unaltered"
            raise ParentUnfit(Failure(kind="parent_unfit", words=words, service="mlflow", field="parent"))
        return self.found.digest


class ModelLifecycleService:
    """Finds parents, registers models and keeps the registry's aliases equal to the log."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def find_parent(
        self, asked: str, into: Path, registered: Callable[[str, int], ModelRegistered | None]
    ) -> FoundParent:
        """Find the model that `asked` names, and copy its files into a folder; what was there is replaced.

        `registered` gives what the log says of a version. Its digest counts before the registry's tag: tags can be
        altered. Raises ParentMissing, ParentUnfit for another algorithm, ArtifactDamaged, OutsideUnavailable.
        """
        found = self._models.look_up(asked)
        if found.agent is not None:
            require_known(found.agent)
        logged = None if found.model is None else registered(found.model.name, found.model.version)
        if logged is not None:
            found = replace(found, digest=logged.digest)
        return FoundParent(found, self._models.fetch(found, into))

    def register(self, run: Run, folder: Path) -> ModelRegistered:
        """Make the packaged model a version in the registry, or find the one that an earlier try made.

        The run carries the key of its RegistrationIntended, its data, evaluation and tracking run; ValueError names
        what is missing. Call under the run's lease: the registry cannot refuse a second version of the same key.
        """
        key, tracking_run_id = run.registration_key, run.tracking_run_id
        if key is None or tracking_run_id is None or run.data is None or run.evaluation is None:
            raise ValueError(f"run {run.run_id}: expected key, tracking run, data and evaluation before a registration")
        name = run.model
        version = self._models.find(name, key)
        if version is None:
            tags = lineage_tags(run, run.evaluation)
            version = self._models.register(name, key, folder, tracking_run_id, tags)
        record = record_of(run)
        return ModelRegistered(
            name=name,
            version=version.version,
            digest=version.digest,
            parent=record.parent,
            root=record.root,
            depth=record.depth,
        )

    def reconcile_aliases(self, aliases: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
        """Point each alias of each model name at its version in the log; `name@alias` of those that had to be moved.

        Repeat it: a crash after the event leaves an alias behind, and the next call moves it. Raises
        OutsideUnavailable, after all others were looked at, that names the aliases that could not be moved.
        """
        moved, failed = [], []
        for alias, versions in aliases.items():
            for name, version in versions.items():
                try:
                    if self._models.alias_version(name, alias) != version:
                        self._models.set_alias(name, alias, version)
                        moved.append(f"{name}@{alias}")
                except OutsideUnavailable as error:
                    failed.append(f"{name}@{alias}: {error.words}")
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


def lineage_tags(run: Run, evaluation: EvaluationFinished) -> dict[str, str]:
    """Where a model version comes from and what it was worth on the test part.

    `parent` and `root` are absent where there is none to name. Raises ValueError as `record_of`.
    """
    record = record_of(run)
    request, feature_config = record.request, record.feature_config
    tags = {
        "run_id": run.run_id,
        "agent": request.agent.name,
        "symbol": request.symbol,
        "timeframe": request.timeframe.value,
        "request_digest": request_digest(request),
        "feature_config_semver": feature_config.semver,
        "feature_config_hash": feature_config.hash,
        "data_digest": record.data.digest,
        "code_version": record.fingerprint.training_fsm,
        "gate_passed": str(evaluation.passed).lower(),
        "depth": str(record.depth),
        "steps": str(record.steps),
        "trained_until": f"{record.trained_until:%Y-%m-%dT%H:%M:%SZ}",
    }
    if run.parent is not None:
        tags["parent"] = str(run.parent.model or run.parent.checkpoint.uri)
    if record.root is not None:
        tags["root"] = str(record.root)
    if run.overridden is not None:
        tags |= {"overridden_by": run.overridden.actor, "overridden_why": run.overridden.why}
    tags |= {
        f"test_{name}": f"{evaluation.metrics[name]:.6g}" for name in HEADLINE_METRICS if name in evaluation.metrics
    }
    return {f"training_fsm.{name}": value for name, value in tags.items()}


def record_of(run: Run) -> TrainingRecord:
    """What travels with the model of a run whose training is finished.

    Raises ValueError that names what the run still lacks.
    """
    data, fingerprint, parent = run.data, run.fingerprint, run.parent
    if data is None or fingerprint is None or not run.checkpoints:
        raise ValueError(f"run {run.run_id}: expected data, fingerprint and a checkpoint before there is a record")
    return TrainingRecord(
        run_id=run.run_id,
        request=run.plan.request,
        feature_config=run.plan.feature_config,
        data=StoredData(**dict(data)),
        checkpoint=run.checkpoints[-1].artifact,
        steps=run.checkpoints[-1].step,
        fingerprint=fingerprint,
        trained_until=trained_until(run),
        parent=None if parent is None else parent.model,
        root=None if parent is None else parent.root,
        depth=0 if parent is None else parent.depth,
    )


def trained_until(run: Run) -> datetime:
    """Opening of the last bar that the run, or an ancestor on the same symbol and timeframe, was trained on.

    Raises ValueError before the run has data.
    """
    if run.data is None:
        raise ValueError(f"run {run.run_id}: expected data before a last training bar")
    end = run.data.bounds.training.end
    record = None if run.parent is None else run.parent.record
    if record is None or (record.request.symbol, record.request.timeframe) != (run.symbol, run.plan.request.timeframe):
        return end
    return max(end, record.trained_until)


def request_digest(request: TrainingRequest) -> str:
    """sha256 of the request as JSON, hexadecimal."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()
