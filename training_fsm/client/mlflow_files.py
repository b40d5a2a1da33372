"""Files that a model version or a tracking run points at, copied from wherever they lie."""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from training_fsm.client.digest import file_digest, folder_digest
from training_fsm.client.mlflow_connection import MlflowConnection, without_password
from training_fsm.domain.errors import ArtifactDamaged, ParentMissing
from training_fsm.domain.facts import Failure
from training_fsm.ports import FoundModel

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

RUNS = "runs:/"
_LISTED_MAX = 10


@dataclass(frozen=True, slots=True)
class _Place:
    """A file or folder as MLflow addresses it: the root of an artifact store, and a path in it, empty for the root."""

    root: str
    path: str

    @property
    def folder(self) -> str | None:
        """The folder that it lies in; None for the root."""
        parent = str(PurePosixPath(self.path).parent)
        return None if parent == "." else parent


def fetch(connection: MlflowConnection, found: FoundModel, into: Path) -> Path:
    """As Models.fetch; also checks the digest, and raises ArtifactDamaged where it is another."""
    what = found.location if found.model is None else f"model {found.model}"
    place = _place(found.location)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.parent) as scratch:
        copies = Path(scratch) / "copies"
        copies.mkdir()
        with connection.calls(f"fetch {what}"):
            repository = _repository(connection, place, what)
            _require_there(repository, place, what)
            # With a destination MLflow copies; without one a local store hands out its own file.
            fetched = Path(repository.download_artifacts(place.path, str(copies)))  # type: ignore[no-untyped-call]
        if fetched.is_dir() and not any(path.is_file() for path in fetched.rglob("*")):
            raise parent_missing(f"{what} has no files: {without_password(found.location)} is empty")
        _check_digest(fetched, found.digest, what)
        shutil.rmtree(into, ignore_errors=True)
        if fetched.is_dir():
            return fetched.rename(into)
        into.mkdir()
        return fetched.rename(into / fetched.name)


def require_file(connection: MlflowConnection, location: str) -> None:
    """Raises ParentMissing, with what lies beside it, where a tracking run has no such file or folder."""
    place = _place(location)
    _require_there(_repository(connection, place, location), place, location)


def parent_missing(words: str) -> ParentMissing:
    """The error about a parent that MLflow does not have."""
    return ParentMissing(Failure(kind="parent_missing", words=words, service="mlflow", field="parent"))


def listed(names: Iterable[str]) -> str:
    """`a, b and c`-like words for what is there, bounded."""
    every = sorted(names)
    if len(every) > _LISTED_MAX:
        return f"{', '.join(every[:_LISTED_MAX])} and {len(every) - _LISTED_MAX} more"
    return ", ".join(every) or "none"


def _place(location: str) -> _Place:
    location = location.rstrip("/")
    if location.startswith(RUNS):
        run, _, path = location.removeprefix(RUNS).partition("/")
        return _Place(f"{RUNS}{run}", str(PurePosixPath(path)) if path else "")
    root, _, path = location.rpartition("/")
    return _Place(root, path)


def _repository(connection: MlflowConnection, place: _Place, what: str) -> "ArtifactRepository":
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    connection.make_global()
    uri = connection.tracking_uri
    try:
        return get_artifact_repository(place.root, tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise parent_missing(f"{what}: MLflow has no run {place.root.removeprefix(RUNS)}") from error


def _require_there(repository: "ArtifactRepository", place: _Place, what: str) -> None:
    """Look before the download: that says for a file that is gone what it says for a server that is away."""
    if not place.path:
        return
    beside = [entry.path for entry in repository.list_artifacts(place.folder)]
    # A logged model is not among the files of its run, but its content is found under its name.
    if place.path not in beside and not repository.list_artifacts(place.path):
        folder = place.root if place.folder is None else f"{place.root}/{place.folder}"
        name = PurePosixPath(place.path).name
        there = listed(PurePosixPath(path).name for path in beside)
        raise parent_missing(f"{what}: there is no {name} in {without_password(folder)}; it has {there}")


def _check_digest(path: Path, expected: str | None, what: str) -> None:
    if expected is None:
        return
    digest = folder_digest(path) if path.is_dir() else file_digest(path)
    if digest != expected:
        words = f"stored files of {what} were altered: they have sha256 {digest}, expected {expected}"
        raise ArtifactDamaged(Failure(kind="artifact_damaged", words=words, service="mlflow", field="parent"))
