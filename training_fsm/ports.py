"""What the use cases need from the outside, as protocols; adapters live in store, client and messaging."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from training_fsm.domain.events import Event
from training_fsm.domain.facts import Artifact, ModelRef
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.inbound import LetterReceived
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.run import Run
from training_fsm.domain.timeframe import TimeRange


@dataclass(frozen=True, slots=True)
class Cause:
    """Who wrote events and what led to them; kept in the envelope."""

    actor: str
    causation_id: str
    correlation_id: str


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """What became of a command."""

    source: str
    command_id: str
    command_type: str
    run_id: str | None
    outcome: str
    """`accepted` or `refused`."""
    reason: str | None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it lies in the log; `payload` is its exact text."""

    position: int
    stream: str
    version: int
    type: str
    schema_version: int
    occurred_at: datetime
    from_state: str | None
    to_state: str | None
    actor: str
    causation_id: str
    correlation_id: str
    payload: str


class UnitOfWork(Protocol):
    """One transaction on the log: everything in it is stored, or nothing."""

    @property
    def now(self) -> datetime:
        """The database's clock when the transaction began; the time of every event in it."""
        ...

    def runs(self, run_ids: Sequence[str]) -> Mapping[str, Run]:
        """The runs as they stand; unknown ids are left out."""
        ...

    def runs_awaiting(self, request_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Ids of the runs whose open or last feature request is one of these, by request id."""
        ...

    def seen_commands(self, keys: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """Which of these (source, command id) are in the inbox already."""
        ...

    def append(self, run_id: str, events: Sequence[Event], cause: Cause) -> Run:
        """Add events to a run, fold them, and return the run after them; written when the unit ends.

        Raises TransitionRefused where the machine has no such arrow.
        """
        ...

    def refuse(self, entry: InboxEntry, cause: Cause) -> None:
        """Record a refusal, in the inbox and as an event of the command's own stream."""
        ...

    def accept(self, entry: InboxEntry) -> None:
        """Record an accepted command in the inbox."""
        ...

    def dead_letter(self, letter: LetterReceived, cause: Cause) -> None:
        """Keep an unreadable message whole; the same letter id twice is kept once."""
        ...


class EventLog(Protocol):
    """The event store."""

    def begin(self) -> AbstractContextManager[UnitOfWork]:
        """A unit of work; commits on exit, rolls back on an exception.

        Raises Conflict where another writer was first.
        """
        ...

    def take_due_feature_requests(self, limit: int, hold_s: float) -> Sequence[Run]:
        """Runs that wait for features and are due, hidden from other askers for `hold_s` seconds."""
        ...

    def next_due_s(self) -> float | None:
        """Seconds until the next run that waits for features is due; None where none waits."""
        ...


@dataclass(frozen=True, slots=True)
class IngestAnswer:
    """Ingest accepted; these are its status and body."""

    status: int
    words: str


class Ingest(Protocol):
    """The ingest service."""

    def request_features(
        self,
        request_id: str,
        wanted: TimeRange,
        request: TrainingRequest,
        feature_config: FeatureConfigVersionInfo,
        context: Literal["training", "backfill"] = "training",
    ) -> IngestAnswer:
        """Ask for data and features of a range; a backfill computes also what is there.

        Raises IngestRefused on a 4xx with ingest's words, OutsideUnavailable on 5xx, time-outs and no connection.
        """
        ...


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One point of a curve; the same point with the same timestamp is stored once."""

    name: str
    value: float
    step: int
    timestamp_ms: int


class Tracking(Protocol):
    """Experiment tracking: one tracking run for each training run."""

    def open_run(self, run_id: str, parameters: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """The tracking run of this training run, found by tag or created; call under the run's lease."""
        ...

    def log_metrics(self, tracking_run_id: str, points: Sequence[MetricPoint]) -> None:
        """Store points in batches; repeating the same points adds nothing."""
        ...

    def set_tags(self, tracking_run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a tracking run."""
        ...

    def close_run(self, tracking_run_id: str, status: str) -> None:
        """End it as FINISHED, FAILED or KILLED."""
        ...

    def open_runs(self) -> Sequence[tuple[str, str]]:
        """(tracking run, training run) of those that have not ended."""
        ...


class Artifacts(Protocol):
    """Files by digest; never overwritten."""

    def put(self, tracking_run_id: str, folder: str, path: Path) -> Artifact:
        """Store a file as `<folder>/<sha256 prefix>-<name>`; storing the same bytes again is harmless."""
        ...

    def get(self, artifact: Artifact, into: Path) -> Path:
        """Bring a file into a folder and check its digest; a good local copy is used as it is.

        Raises ArtifactDamaged where bytes differ or are gone, OutsideUnavailable where the store does not answer.
        """
        ...

    def delete(self, artifact: Artifact) -> None:
        """Delete a file that an event has released; one that is gone already is no fault.

        Raises OutsideUnavailable where the store does not answer, or refuses.
        """
        ...


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version in the model registry and the digest of its folder."""

    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model to continue, or a champion, as the registry has it; the version is pinned by this look."""

    model: ModelRef | None
    """None for a file of a tracking run that is no version."""
    location: str
    """Where its files are, for `fetch`."""
    digest: str | None
    """sha256 of its folder as the registry's tag says it; None where nobody of ours registered it."""
    agent: str | None
    """The algorithm, as its tag says it."""


class Models(Protocol):
    """The model registry."""

    def look_up(self, parent: str) -> FoundModel:
        """What `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `runs:/RUN/PATH` or the id of a run names.

        A run's id, ours or MLflow's, names the newest version that was registered from it.
        Raises ParentMissing, OutsideUnavailable.
        """
        ...

    def fetch(self, found: FoundModel, into: Path) -> Path:
        """Bring its files, or its one file, into a folder that is empty or not there; where they lie then.

        Raises ParentMissing where they are gone, OutsideUnavailable.
        """
        ...

    def find(self, name: str, key: str) -> RegisteredVersion | None:
        """The version that carries this idempotency key, if any."""
        ...

    def register(
        self, name: str, key: str, folder: Path, tracking_run_id: str, tags: Mapping[str, str]
    ) -> RegisteredVersion:
        """Upload a packaged model folder and make it a version of `name` tagged with `key`."""
        ...

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        ...

    def alias_version(self, name: str, alias: str) -> int | None:
        """The version that an alias points at, if any."""
        ...
