"""Fold history again: as it was at some point, or to find what in the log is not as it was written."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from training_fsm.domain.errors import ArtifactDamaged, OutsideUnavailable
from training_fsm.domain.events import CheckpointSaved, Event
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import Artifact
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.ports import Artifacts
from training_fsm.service.audit_log import RUN_STREAM, AuditLog, AuditSnapshot, LoggedEvent
from training_fsm.service.audit_stream import Fault, StreamCheck
from training_fsm.service.stored_files import released_by

_STREAMS_AT_ONCE = 200


@dataclass(slots=True)
class Report:
    """What was looked at, and what is off: at most one fault a stream, the earliest written first."""

    streams: int = 0
    events: int = 0
    artifacts: int = 0
    faults: list[Fault] = field(default_factory=list)
    unchecked: str | None = None
    """Why not every stored file could be looked at, and which was the first that could not."""

    @property
    def ok(self) -> bool:
        """Everything was looked at, and is as it was written."""
        return not self.faults and self.unchecked is None


Tell = Callable[[Report], None]
Released = dict[str, frozenset[str]]
"""By stream, the files that it has released."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A run as it was, and the event that made it so."""

    run: Run
    last: LoggedEvent
    since: datetime
    """When it entered its state."""


def replay(log: AuditLog, run_id: str, *, version: int | None = None, at: datetime | None = None) -> Replayed | None:
    """Fold a run up to a version, or a time, inclusive; None where it had no event yet."""
    replayed: Replayed | None = None
    for logged in log.history(run_id):
        if (version is not None and logged.version > version) or (at is not None and logged.occurred_at > at):
            break
        before = replayed.run if replayed else None
        run = evolve(before, run_id, logged.event, State(logged.to_state or ""))
        entered = replayed is None or logged.from_state != logged.to_state
        replayed = Replayed(run, logged, logged.occurred_at if replayed is None or entered else replayed.since)
    return replayed


def verify(
    log: AuditLog, run_id: str | None, artifacts: Callable[[], Artifacts] | None, tell: Tell = lambda _: None
) -> Report:
    """Re-derive everything that the log says about itself, for every stream or one run.

    `artifacts` is called before the first file is fetched, None fetches none; `tell` hears how far it is.
    Raises OutsideUnavailable where the log does not answer; where the artifact store does not, the report says so.
    """
    report = Report()
    stream = None if run_id is None else RUN_STREAM + run_id
    released: Released = {}
    with log.snapshot() as snapshot:
        _verify_streams(snapshot, stream, report, released, tell)
        if stream is None or report.streams == 0:
            gone = (found for found in snapshot.streams_gone() if stream in (None, found[0]))
            report.faults.extend(Fault(name, None, None, "stream", words, "no event") for name, words in gone)
    if artifacts is not None:
        _verify_artifacts(log, artifacts, stream, report, released, tell)
    report.faults.sort(key=lambda fault: (fault.position is None, fault.position or 0, fault.stream))
    return report


def _verify_streams(
    snapshot: AuditSnapshot, stream: str | None, report: Report, released: Released, tell: Tell
) -> None:
    finished: list[StreamCheck] = []
    current: StreamCheck | None = None
    for logged in snapshot.logged(stream):
        if current is None or current.name != logged.stream:
            if current is not None:
                finished.append(current)
            if len(finished) >= _STREAMS_AT_ONCE:
                _close(snapshot, finished, report, released)
                finished.clear()
            current = StreamCheck(logged.stream)
            tell(report)
        current.take(logged)
        report.events += 1
    _close(snapshot, finished if current is None else [*finished, current], report, released)


def _close(snapshot: AuditSnapshot, streams: Sequence[StreamCheck], report: Report, released: Released) -> None:
    run_ids = [stream.run_id for stream in streams if stream.run_id is not None]
    letter_ids = [stream.letter_id for stream in streams if stream.letter_id is not None]
    heads = snapshot.heads(run_ids) if run_ids else {}
    digests = snapshot.letter_digests(letter_ids) if letter_ids else {}
    for stream in streams:
        if stream.fault is None and stream.run_id is not None:
            stream.check_head(heads.get(stream.run_id))
        if stream.fault is None and stream.letter_id is not None:
            stream.check_letter(digests.get(stream.letter_id))
        if stream.fault is not None:
            report.faults.append(stream.fault)
        if gone := stream.files.all_released:
            released[stream.name] = gone
    report.streams += len(streams)


def _verify_artifacts(
    log: AuditLog,
    build: Callable[[], Artifacts],
    stream: str | None,
    report: Report,
    released: Released,
    tell: Tell,
) -> None:
    known_bad = {fault.stream for fault in report.faults}
    store: Artifacts | None = None
    position = 0
    while batch := log.with_artifacts(stream, position, _STREAMS_AT_ONCE):
        position = batch[-1].position
        for logged in batch:
            if logged.stream in known_bad:
                continue
            for artifact in _artifacts(logged.event):
                if artifact.uri in released.get(logged.stream, ()):
                    continue  # the janitor may have deleted it
                store = store or build()
                try:
                    fault = _artifact_fault(store, logged, artifact)
                except OutsideUnavailable as error:
                    report.unchecked = f"{logged.stream} version {logged.version}: {error}"
                    return
                if fault is not None and _released_meanwhile(log, logged, artifact):
                    continue
                report.artifacts += 1
                if fault is not None:
                    report.faults.append(fault)
                    known_bad.add(logged.stream)
                    break
            tell(report)


def _released_meanwhile(log: AuditLog, logged: LoggedEvent, artifact: Artifact) -> bool:
    """Whether the run has released a file since the log was read."""
    run_id = logged.stream.removeprefix(RUN_STREAM)
    return released_by(log.history(run_id, logged.version), artifact.uri)


def _artifact_fault(store: Artifacts, logged: LoggedEvent, artifact: Artifact) -> Fault | None:
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        try:
            store.get(artifact, Path(folder))
        except ArtifactDamaged as error:
            expected = f"sha256 {artifact.sha256}"
            return Fault(logged.stream, logged.version, logged.position, "artifact", expected, error.failure.words)
    return None


def _artifacts(event: Event) -> tuple[Artifact, ...]:
    own = (event.artifact,) if isinstance(event, CheckpointSaved) else ()
    return (*own, *(value for _, value in event if isinstance(value, Artifact)))
