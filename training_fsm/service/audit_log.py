"""What the audit reads: rows of the log and of what was derived from it, as they lie there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, get_args

from training_fsm.domain.events import EVENT_TYPES, Event
from training_fsm.domain.facts import Artifact
from training_fsm.domain.upcasters import read_event
from training_fsm.ports import StoredEvent

RUN_STREAM = "run-"
LETTER_STREAM = "letter-"
ARTIFACT_EVENTS = tuple(
    name
    for name, kind in EVENT_TYPES.items()
    if any(Artifact in (field.annotation, *get_args(field.annotation)) for field in kind.model_fields.values())
)
"""Types of the events that name stored files."""


@dataclass(frozen=True, slots=True)
class LoggedEvent(StoredEvent):
    """A stored event with its place in the hash chain."""

    previous_hash: bytes
    hash: bytes
    computed_hash: bytes
    """What this row and its `previous_hash` hash to."""

    @property
    def event(self) -> Event:
        """The typed event. Raises ValueError for one that this build cannot read."""
        return read_event(self.type, self.schema_version, self.payload)


@dataclass(frozen=True, slots=True)
class RecordedHead:
    """A row of run_heads as it lies there; `columns` are those that follow from the log."""

    columns: Mapping[str, object]
    last_hash: bytes
    run: str
    """The folded run, as JSON."""


class AuditSnapshot(Protocol):
    """The log and what was derived from it, at one moment."""

    def logged(self, stream: str | None) -> Iterator[LoggedEvent]:
        """Every event, or those of one stream, by stream and version; read in batches."""
        ...

    def heads(self, run_ids: Sequence[str]) -> Mapping[str, RecordedHead]:
        """The heads of these runs; those that are not there are left out."""
        ...

    def letter_digests(self, letter_ids: Sequence[str]) -> Mapping[str, str]:
        """sha256 of the messages kept for these letters."""
        ...

    def streams_gone(self) -> Sequence[tuple[str, str]]:
        """Streams without any event that another table knows of, with what it says."""
        ...


class AuditLog(Protocol):
    """What the audit reads."""

    def snapshot(self) -> AbstractContextManager[AuditSnapshot]:
        """The log as of now, unchanged while it is read."""
        ...

    def history(self, run_id: str, after_version: int = 0) -> Iterator[LoggedEvent]:
        """The events of a run, in order."""
        ...

    def with_artifacts(self, stream: str | None, after_position: int, limit: int) -> Sequence[LoggedEvent]:
        """Events of ARTIFACT_EVENTS behind a position."""
        ...
