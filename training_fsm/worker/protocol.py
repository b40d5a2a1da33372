"""What a worker's supervisor and its training child say to each other: one JSON object a line, on two pipes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from training_fsm.domain.facts import Failure, Fingerprint, FrozenData, Judgement, ModelRef, StoredData
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.lineage import Inheritance, Parent, TrainingRecord
from training_fsm.domain.model import Model
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange, UtcTime


class Inspect(Model):
    """Look into a Stable-Baselines3 zip; `trusted` reads it whole, which runs what is pickled in it."""

    kind: Literal["inspect"] = "inspect"
    path: Path
    sha256: str
    trusted: bool


class LookUp(Model):
    """See which parts of the ranges the feature store lacks."""

    kind: Literal["look_up"] = "look_up"
    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo
    ranges: tuple[TimeRange, ...]
    known: bool
    """The feature service was there for the parent: it must be there now."""


class Freeze(Model):
    """Read the run's rows from Feast, and its parent's from their file, check them, write them to `folder`."""

    kind: Literal["freeze"] = "freeze"
    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo
    parent: Parent | None = None
    parent_frame: Path | None = None
    """The parent's frozen rows; None without a parent, and for one that has none."""
    accept_drift: bool = False
    folder: Path


class Train(Model):
    """Train from the start or a checkpoint; checkpoints go to `folder`."""

    kind: Literal["train"] = "train"
    request: TrainingRequest
    data: StoredData
    frame: Path
    folder: Path
    resume_from: Path | None
    parent: Parent | None = None
    parent_checkpoint: Path | None = None
    """None where there is something of the run's own to resume from."""
    inheritance: Inheritance | None = None
    """What of the parent's checkpoint goes on; None without a parent."""
    last_step: int
    """Environment step to train to."""


class Opponent(Model):
    """The champion that a challenger must beat."""

    model: ModelRef
    record: TrainingRecord
    checkpoint: Path


class Evaluate(Model):
    """Backtest a checkpoint's policy on the test part and write the report to `folder`."""

    kind: Literal["evaluate"] = "evaluate"
    record: TrainingRecord
    frame: Path
    checkpoint: Path
    opponent: Opponent | None = None
    """Only where the request has a champion rule and there is a champion."""
    stream_version: int = 0
    """Of the stream that said who is champion."""
    folder: Path


class Package(Model):
    """Write a checkpoint's policy to `folder` as a model that loads without us."""

    kind: Literal["package"] = "package"
    record: TrainingRecord
    checkpoint: Path
    created_at: UtcTime
    folder: Path


class Stop(Model):
    """Leave a checkpoint at the next rollout boundary and end."""

    kind: Literal["stop"] = "stop"


class Ready(Model):
    """Everything slow is imported."""

    kind: Literal["ready"] = "ready"


class Inspected(Model):
    """What a Stable-Baselines3 zip says; nothing of a request where only its weights are read."""

    kind: Literal["inspected"] = "inspected"
    steps: int
    inherited: dict[str, JsonValue]
    """Fields of a training request, as in its JSON."""


class LookedUp(Model):
    """What the feature store lacks."""

    kind: Literal["looked_up"] = "looked_up"
    service: str
    lacking: tuple[TimeRange, ...]


class Frozen(Model):
    """Rows are checked and lie in a file."""

    kind: Literal["frozen"] = "frozen"
    path: Path
    data: FrozenData


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
    judgement: Judgement
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


Order = Annotated[Inspect | LookUp | Freeze | Train | Evaluate | Package | Stop, Field(discriminator="kind")]
Reply = Annotated[
    Ready
    | Inspected
    | LookedUp
    | Frozen
    | SegmentBegun
    | Advanced
    | Curves
    | CheckpointWritten
    | Trained
    | Evaluated
    | Packaged
    | Failed,
    Field(discriminator="kind"),
]

ORDERS: TypeAdapter[Order] = TypeAdapter(Order)
REPLIES: TypeAdapter[Reply] = TypeAdapter(Reply)
