"""What a worker's supervisor and its training child say to each other: one JSON object a line, on two pipes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from training_fsm.domain.events import DataFrozen
from training_fsm.domain.facts import (
    ColumnNormalisation,
    Failure,
    Fingerprint,
    Gaps,
    MetricBand,
    SplitBounds,
    Verdict,
)
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.model import Model
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import UtcTime


class Freeze(Model):
    """Read the run's rows from Feast, check them, write them to `folder`."""

    kind: Literal["freeze"] = "freeze"
    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo
    folder: Path


class Train(Model):
    """Train from the start or a checkpoint; checkpoints go to `folder`."""

    kind: Literal["train"] = "train"
    request: TrainingRequest
    data: DataFrozen
    frame: Path
    folder: Path
    resume_from: Path | None


class Evaluate(Model):
    """Backtest a checkpoint's policy on the test part and write the report to `folder`."""

    kind: Literal["evaluate"] = "evaluate"
    run_id: str
    request: TrainingRequest
    data: DataFrozen
    frame: Path
    checkpoint: Path
    checkpoint_sha256: str
    folder: Path


class Package(Model):
    """Write a checkpoint's policy to `folder` as a model that loads without us."""

    kind: Literal["package"] = "package"
    run_id: str
    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo
    data: DataFrozen
    checkpoint: Path
    checkpoint_sha256: str
    created_at: UtcTime
    folder: Path


class Stop(Model):
    """Leave a checkpoint at the next rollout boundary and end."""

    kind: Literal["stop"] = "stop"


class Ready(Model):
    """Everything slow is imported."""

    kind: Literal["ready"] = "ready"


class Frozen(Model):
    """Rows are checked and lie in a file; all that DataFrozen says but the artifact."""

    kind: Literal["frozen"] = "frozen"
    path: Path
    digest: str
    rows: int
    warmup_rows: int
    gaps: Gaps
    periods_per_year: float
    observation_columns: tuple[str, ...]
    bounds: SplitBounds
    normalisation: tuple[ColumnNormalisation, ...]
    warnings: tuple[str, ...]


class SegmentBegun(Model):
    """Training begins now, under this fingerprint."""

    kind: Literal["segment_begun"] = "segment_begun"
    fingerprint: Fingerprint


class Advanced(Model):
    """Environment steps done of all, and the last rollout's means."""

    kind: Literal["advanced"] = "advanced"
    step: int
    total: int
    steps_per_s: float
    reward: float | None


class CurvePoint(Model):
    """One point of a training curve, at the time it was made."""

    name: str
    value: float
    step: int
    timestamp_ms: int


class Curves(Model):
    """Points of the training curves of one update, or of all since a checkpoint."""

    kind: Literal["curves"] = "curves"
    points: tuple[CurvePoint, ...]


class CheckpointWritten(Model):
    """A checkpoint is on disk; it stays there while two later ones are written."""

    kind: Literal["checkpoint_written"] = "checkpoint_written"
    path: Path
    step: int
    sha256: str


class Trained(Model):
    """The segment ended: after the last update, or where it was told to stop."""

    kind: Literal["trained"] = "trained"
    finished: bool
    sha256: str
    steps: int
    validation: dict[str, float]


class Evaluated(Model):
    """The backtest is done; `report` ends with its summary, which names the digests of the others."""

    kind: Literal["evaluated"] = "evaluated"
    metrics: dict[str, float]
    bands: tuple[MetricBand, ...]
    gate: tuple[Verdict, ...]
    validations: tuple[Verdict, ...]
    passed: bool
    report: tuple[Path, ...]


class Packaged(Model):
    """The model folder is complete."""

    kind: Literal["packaged"] = "packaged"
    folder: Path


class Failed(Model):
    """An order could not be done; a passing failure may go better next time."""

    kind: Literal["failed"] = "failed"
    failure: Failure
    passing: bool


Order = Annotated[Freeze | Train | Evaluate | Package | Stop, Field(discriminator="kind")]
Reply = Annotated[
    Ready | Frozen | SegmentBegun | Advanced | Curves | CheckpointWritten | Trained | Evaluated | Packaged | Failed,
    Field(discriminator="kind"),
]

ORDERS: TypeAdapter[Order] = TypeAdapter(Order)
REPLIES: TypeAdapter[Reply] = TypeAdapter(Reply)
