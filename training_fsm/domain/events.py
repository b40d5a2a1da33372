"""Events: what happened to a run, in the past tense, each with a schema version."""

import re
from typing import ClassVar, Literal

from pydantic import JsonValue

from training_fsm.domain.facts import (
    Artifact,
    Failure,
    Fingerprint,
    Header,
    Judgement,
    ModelRef,
    StoredData,
)
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.lineage import Change, Inheritance, Parent
from training_fsm.domain.model import Model
from training_fsm.domain.request import Request, TrainingRequest
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import TimeRange, UtcTime

FOUND_IN_FEAST = "found in Feast"
"""Stands in FeaturesReady for a request id where nobody was asked."""


class Event(Model):
    """One fact. The class name in snake_case is its type on the wire and in the table."""

    schema_version: ClassVar[int] = 1

    @classmethod
    def type(cls) -> str:
        """The event's name on the wire."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class Signed(Model):
    """Who wanted it, and why."""

    actor: str
    why: str


class RunRequested(Event):
    """A run was asked for; everything it will do follows from this request."""

    request: Request
    feature_config: FeatureConfigVersionInfo | None
    """None in mode continue: it is the parent's."""


class ParentResolved(Event):
    """The model version to continue was found, and what is trained follows from it and the request."""

    parent: Parent
    request: TrainingRequest
    """Complete: the parent's, with what the asker changes."""
    feature_config: FeatureConfigVersionInfo
    changes: tuple[Change, ...]
    """Where the request differs from the parent's; all of it where the parent has none."""


class FeaturesLacking(Event):
    """The feature store has not all that a continued run needs; ingest is asked for it."""

    service: str
    ranges: tuple[TimeRange, ...]


class FeaturesRequested(Event):
    """Ingest is to be asked for features under this request id, until the deadline."""

    request_id: str
    attempt: int
    deadline: UtcTime
    range: TimeRange | None = None
    """Absent: the request's whole range."""
    context: Literal["training", "backfill"] = "training"
    """Ingest's processing_context: a backfill computes also what is there."""


class FeatureRequestAnswered(Event):
    """Ingest accepted the request for features."""

    request_id: str
    status: int
    words: str


class FeaturesReady(Event):
    """Preprocess says that the features are there; the worker looks for itself."""

    request_id: str
    """`found in Feast` where a continued run's features were all there, and nobody was asked."""
    total_features_computed: int
    success_details: dict[str, JsonValue]


class FeaturesIncomplete(Event):
    """The feature store lacks something after all, and the operator's settings let it be asked for once more."""

    service: str | None
    field: str | None
    range: str | None
    words: str


class DeadlinePassed(Event):
    """No answer came in time: a worker looks into the feature store once more before the run fails."""

    request_id: str


class RunClaimed(Event):
    """A worker took the run under a lease; its token fences every later append."""

    token: int
    worker: str
    lease_s: float


class DataFrozen(StoredData, Event):
    """The run's rows were checked and stored by content; nothing reads the feature store again."""


class TrainingStarted(Event):
    """The first segment of training began."""

    token: int
    fingerprint: Fingerprint
    tracking_run_id: str
    step: int = 0
    """Environment steps that the parent had done."""
    inheritance: Inheritance | None = None
    """What of the parent's training goes on, and what begins anew; None from scratch."""


class TrainingResumed(Event):
    """Training went on from a checkpoint, or from the start where there was none yet."""

    token: int
    step: int
    checkpoint: str | None
    """Its sha256; None where there was none yet."""
    fidelity: Literal["exact", "approximate"]
    fingerprint: Fingerprint
    differences: tuple[str, ...] = ()


class CheckpointSaved(Event):
    """Everything the rest of the training depends on was stored."""

    step: int
    uri: str
    sha256: str
    size_bytes: int
    curves: Artifact | None = None
    """The training curves since the checkpoint before, for whoever takes the run over."""

    @property
    def artifact(self) -> Artifact:
        """The stored file."""
        return Artifact(uri=self.uri, sha256=self.sha256, size_bytes=self.size_bytes)


class PauseRequested(Signed, Event):
    """Somebody wants the training to stop at its next checkpoint."""


class RunPaused(Signed, Event):
    """The training stands at a checkpoint until somebody resumes it."""

    step: int


class RunResumed(Signed, Event):
    """Somebody let a paused training go on, or took back the wish to pause it."""


class RunExtended(Signed, Event):
    """Somebody asked for more steps; a rejected run trains again."""

    additional_timesteps: int


class TrainingFinished(Event):
    """The last update is done and its checkpoint stored."""

    checkpoint: str
    """Its sha256."""
    steps: int


class EvaluationFinished(Judgement, Event):
    """The backtest on the test part, and what the gate says of it."""

    report: Artifact


class RegistrationIntended(Event):
    """The model is about to be registered under this idempotency key."""

    key: str


class ModelRegistered(Event):
    """The model is a version in the registry."""

    name: str
    version: int
    digest: str
    parent: ModelRef | None = None
    root: ModelRef | None = None
    """First of the line; None where this model is it, or its first parent is in no registry."""
    depth: int = 0
    """Generations since the root."""


class ChampionPromoted(Event):
    """A version became its model's champion; in stream `model-<name>`, whose versions are compared and set."""

    name: str
    version: int
    digest: str
    run_id: str
    supersedes: int | None


class ModelRejected(Event):
    """The gate did not let the model through."""

    failed: tuple[str, ...]


class RejectionOverridden(Signed, Event):
    """Somebody has a rejected model registered all the same, and says why."""


class ArtifactsReleased(Event):
    """Stored files that nothing needs any more: from now on the janitor may delete them."""

    artifacts: tuple[Artifact, ...]
    why: str


class AttemptFailed(Event):
    """Something failed and is tried again, not before `retry_at`."""

    reason: Failure
    attempt: int
    retry_at: UtcTime


class RunFailed(Event):
    """The run ended without a model."""

    reason: Failure
    failed_from: State


class RunCancelled(Signed, Event):
    """Somebody stopped the run."""


class RunRetried(Signed, Event):
    """Somebody sent a failed run back to the state it failed in."""


class CommandRefused(Event):
    """A command made no sense; the reason is for its sender."""

    command_id: str
    command_source: str
    command_type: str
    run_id: str | None
    reason: str


class MessageDeadLettered(Event):
    """A message that could not be read; its bytes lie whole in table dead_letters."""

    topic: str
    partition: int
    offset: int
    reason: str
    sha256: str
    size_bytes: int
    key_base64: str | None
    """At most the first kilobyte."""
    bytes: str
    """The message's value, base64; at most its first 64 kB."""
    headers: tuple[Header, ...] = ()
    """Its first headers, at most 16 kB of them; none of letters that were written before headers were kept."""


class LogRestored(Event):
    """The log goes on from a backup or a replica: what had gone out behind `last_position` is void."""

    last_position: int
    """Of the log as it was found."""
    published_position: int
    """The highest that had gone out, none is used again; not above `last_position` where nothing of that is lost."""


def _all_types(base: type[Event]) -> dict[str, type[Event]]:
    return {event.type(): event for event in base.__subclasses__()}


EVENT_TYPES: dict[str, type[Event]] = _all_types(Event)
