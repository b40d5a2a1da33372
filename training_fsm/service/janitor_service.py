"""Deletes what was released: again and again until it is done, and nothing that anything still needs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.facts import Artifact
from training_fsm.ports import Artifacts
from training_fsm.service.audit_log import RUN_STREAM, LoggedEvent
from training_fsm.service.retention_service import Release
from training_fsm.service.stored_files import still_needed

TROUBLES_MAX = 3
"""After so many the artifact store is taken as away, and the rest is left for the next pass."""


@dataclass(frozen=True, slots=True)
class ReleasedFile:
    """A file that a run has released and nobody has recorded as deleted."""

    run_id: str
    version: int
    """Of the event that released it."""
    artifact: Artifact


@dataclass(slots=True)
class Swept:
    """What became of the released files."""

    deleted: list[Artifact] = field(default_factory=list)
    held: list[Artifact] = field(default_factory=list)
    """Another run names them and has not released them."""
    troubles: list[str] = field(default_factory=list)
    left: int = 0
    """Files for the next pass."""

    @property
    def size_bytes(self) -> int:
        """What was deleted, together."""
        return sum(artifact.size_bytes for artifact in self.deleted)


class ReleasedFiles(Protocol):
    """What the janitor reads and records."""

    def to_delete(self) -> Sequence[ReleasedFile]:
        """Files that were released and not recorded as deleted, the longest released first."""
        ...

    def file_events(self) -> Iterator[LoggedEvent]:
        """Every event that names or releases files, at one moment, by stream and version."""
        ...

    def deleted(self, file: ReleasedFile) -> None:
        """Record that a file is deleted; nothing where it was released anew meanwhile."""
        ...


class JanitorService:
    """Deletes files by their releases. A crash before the record makes the next pass delete the same file again."""

    def __init__(self, files: ReleasedFiles) -> None:
        self._files = files

    def planned(self, releases: Sequence[Release]) -> Swept:
        """What would be deleted once these releases were made as well."""
        files = {file.artifact.uri: file.artifact for file in self._files.to_delete()}
        about_to_go: dict[str, set[str]] = {}
        for release in releases:
            files |= {artifact.uri: artifact for artifact in release.artifacts}
            about_to_go.setdefault(RUN_STREAM + release.run_id, set()).update(one.uri for one in release.artifacts)
        needed = self._needed(files, about_to_go)
        return Swept(
            deleted=[artifact for uri, artifact in files.items() if uri not in needed],
            held=[artifact for uri, artifact in files.items() if uri in needed],
        )

    def sweep(self, store: Artifacts) -> Swept:
        """Delete what was released and nothing names any more, and record each."""
        swept = Swept()
        by_uri: dict[str, list[ReleasedFile]] = {}
        for file in self._files.to_delete():
            by_uri.setdefault(file.artifact.uri, []).append(file)
        needed = self._needed(by_uri, {})
        for uri, files in by_uri.items():
            artifact = files[0].artifact
            if uri in needed:
                swept.held.append(artifact)
            elif len(swept.troubles) < TROUBLES_MAX:
                self._delete(store, files, swept)
            else:
                swept.left += 1
        return swept

    def _delete(self, store: Artifacts, files: Sequence[ReleasedFile], swept: Swept) -> None:
        try:
            store.delete(files[0].artifact)
        except OutsideUnavailable as error:
            swept.troubles.append(str(error))
            swept.left += 1
            return
        for file in files:
            self._files.deleted(file)
        swept.deleted.append(files[0].artifact)

    def _needed(self, among: Collection[str], about_to_go: Mapping[str, Collection[str]]) -> set[str]:
        return still_needed(self._files.file_events(), among, about_to_go) if among else set()
