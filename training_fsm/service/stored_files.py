"""The stored files that a run's events name, and those that they release."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import get_args

from training_fsm.domain.events import (
    EVENT_TYPES,
    ArtifactsReleased,
    CheckpointSaved,
    DataFrozen,
    EvaluationFinished,
    Event,
    ParentResolved,
)
from training_fsm.domain.facts import Artifact
from training_fsm.domain.model import Model
from training_fsm.domain.run import Checkpoint
from training_fsm.service.audit_log import LoggedEvent


def _holds_files(annotation: object) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        fields = annotation.model_fields.values()
        return annotation is Artifact or any(_holds_files(field.annotation) for field in fields)
    return any(_holds_files(part) for part in get_args(annotation))


FILE_EVENTS = tuple(name for name, kind in EVENT_TYPES.items() if _holds_files(kind))
"""Types of the events that name or release stored files, at whatever depth."""


def named(event: Event) -> Iterator[Artifact]:
    """Every stored file that an event names, also those of others; a release names none."""
    if isinstance(event, ArtifactsReleased):
        return
    if isinstance(event, CheckpointSaved):
        yield event.artifact
    yield from _within(event)


def _within(value: object) -> Iterator[Artifact]:
    match value:
        case Artifact():
            yield value
        case Model():
            for _, part in value:
                yield from _within(part)
        case tuple():
            for part in value:
                yield from _within(part)
        case _:
            pass


class Ledger:
    """Which files one stream names, and which it has released since it named them last."""

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}

    def take(self, event: Event) -> None:
        """Add the next event of the stream."""
        if isinstance(event, ArtifactsReleased):
            self._open |= dict.fromkeys((artifact.uri for artifact in event.artifacts), False)
        else:
            self._open |= dict.fromkeys((artifact.uri for artifact in named(event)), True)

    def release(self, uris: Iterable[str]) -> None:
        """Take files as released that are about to be."""
        self._open |= dict.fromkeys(uris, False)

    @property
    def all_released(self) -> frozenset[str]:
        """Every file that the stream has released, and has not named again."""
        return frozenset(uri for uri, open_ in self._open.items() if not open_)

    def released(self, uri: str) -> bool:
        """Whether the stream has released the file, and has not named it again."""
        return self._open.get(uri) is False

    def needed(self, among: Collection[str]) -> set[str]:
        """Those of these files that the stream names and has not released."""
        if len(among) < len(self._open):
            return {uri for uri in among if self._open.get(uri)}
        return {uri for uri, open_ in self._open.items() if open_ and uri in among}


@dataclass(slots=True)
class RunFiles:
    """The files that a run stored itself, in the order in which its events name them."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    inputs: list[Artifact] = field(default_factory=list)
    """Frozen data, and a parent that was no model of ours and is kept beside the run."""
    lasting: set[str] = field(default_factory=set)
    """Reports, and what is another run's."""
    ledger: Ledger = field(default_factory=Ledger)
    since: datetime | None = None
    """When the run entered its state."""


def files_of(events: Iterable[LoggedEvent]) -> RunFiles:
    """The files of a run, from those of its events that name or release some or move it to another state."""
    files = RunFiles()
    for logged in events:
        if logged.from_state != logged.to_state:
            files.since = logged.occurred_at
        event = logged.event
        files.ledger.take(event)
        match event:
            case CheckpointSaved(step=step, artifact=artifact, curves=curves):
                files.checkpoints.append(Checkpoint(step=step, artifact=artifact, curves=curves))
            case DataFrozen(artifact=artifact):
                files.inputs.append(artifact)
            case EvaluationFinished(report=report):
                files.lasting.add(report.uri)
            case ParentResolved(parent=parent) if parent.record is None:
                files.inputs.append(parent.checkpoint)
            case ParentResolved():
                files.lasting |= {artifact.uri for artifact in named(event)}
            case _:
                pass
    return files


def released_by(events: Iterable[LoggedEvent], uri: str) -> bool:
    """Whether one stream has released a file and has not named it again."""
    ledger = Ledger()
    for logged in events:
        ledger.take(logged.event)
    return ledger.released(uri)


def still_needed(
    events: Iterable[LoggedEvent], among: Collection[str], about_to_go: Mapping[str, Collection[str]]
) -> set[str]:
    """Those of these files that some stream names and has not released; events come by stream and version.

    `about_to_go` has, by stream, files to be taken as released there.
    """
    needed: set[str] = set()
    stream, ledger = "", Ledger()
    for logged in events:
        if logged.stream != stream:
            ledger.release(about_to_go.get(stream, ()))
            needed |= ledger.needed(among)
            stream, ledger = logged.stream, Ledger()
        ledger.take(logged.event)
    ledger.release(about_to_go.get(stream, ()))
    return needed | ledger.needed(among)
