"""Files by digest in MLflow's artifact store, beside the tracking run that they belong to."""

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from training_fsm.client.digest import file_digest
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.domain.errors import ArtifactDamaged, OutsideUnavailable
from training_fsm.domain.facts import Artifact, Failure

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

_SCHEME = "runs:/"
_PREFIX_DIGITS = 16


class MlflowArtifacts:
    """Implements Artifacts; URIs read `runs:/<tracking run>/<folder>/<first 16 digits of sha256>-<name>`."""

    def __init__(self, connection: MlflowConnection) -> None:
        self._connection = connection

    def put(self, tracking_run_id: str, folder: str, path: Path) -> Artifact:
        """Store a file by the digest of its bytes; what is there already, whole, is not sent again."""
        sha256, size_bytes = file_digest(path), path.stat().st_size
        prefix = f"{sha256[:_PREFIX_DIGITS]}-"
        name = path.name if path.name.startswith(prefix) else prefix + path.name
        stored = f"{folder}/{name}"
        with tempfile.TemporaryDirectory(prefix="put-", dir=path.parent) as scratch:
            # MLflow stores under the local file's own name.
            named = Path(scratch) / name
            same_file(path, named)
            with self._connection.calls(f"store {stored}") as client:
                there = {entry.path: entry.file_size for entry in client.list_artifacts(tracking_run_id, folder)}
                if there.get(stored) != size_bytes:
                    client.log_artifact(tracking_run_id, str(named), folder)
        return Artifact(uri=f"{_SCHEME}{tracking_run_id}/{stored}", sha256=sha256, size_bytes=size_bytes)

    def get(self, artifact: Artifact, into: Path) -> Path:
        """Bring a file into a folder and check its digest; a good local copy is used as it is.

        Raises ArtifactDamaged where bytes differ or are gone, OutsideUnavailable where the store does not answer.
        """
        tracking_run_id, stored = _parsed(artifact.uri)
        local = into / PurePosixPath(stored).name
        if local.is_file() and file_digest(local) == artifact.sha256:
            return local
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="get-", dir=into) as scratch:
            fetched = self._fetch(artifact, tracking_run_id, stored, scratch)
            found = file_digest(fetched)
            if found != artifact.sha256:
                raise _damaged(artifact, f"has sha256 {found}, the log says {artifact.sha256}")
            os.replace(fetched, local)
        return local

    def delete(self, artifact: Artifact) -> None:
        """Delete a file; one that is gone already, also with its whole tracking run, is no fault.

        Raises OutsideUnavailable where the store does not answer or refuses, or is a folder that is not on this
        machine; ValueError where the file does not carry its digest in its name, as all do that `put` stores.
        """
        tracking_run_id, stored = _parsed(artifact.uri)
        if not PurePosixPath(stored).name.startswith(f"{artifact.sha256[:_PREFIX_DIGITS]}-"):
            raise ValueError(f"artifact uri: expected a name that begins with the file's digest, got {artifact.uri!r}")
        try:
            with self._connection.calls(f"delete {artifact.uri}"):
                repository = _repository(tracking_run_id, self._connection.tracking_uri)
                folder = getattr(repository, "artifact_dir", None)
                if folder is not None and not Path(folder).is_dir():
                    raise OSError(f"its folder {folder} is not on this machine")
                repository.delete_artifacts(stored)  # type: ignore[no-untyped-call]
        except OutsideUnavailable as error:
            if getattr(error.__cause__, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _fetch(self, artifact: Artifact, tracking_run_id: str, stored: str, scratch: str) -> Path:
        try:
            with self._connection.calls(f"fetch {artifact.uri}") as client:
                beside = client.list_artifacts(tracking_run_id, str(PurePosixPath(stored).parent))
                if stored not in {entry.path for entry in beside}:
                    raise _damaged(artifact, "is not in the store any more")
                # With a destination MLflow copies; without one a local store hands out its own file.
                return Path(client.download_artifacts(tracking_run_id, stored, scratch))
        except OutsideUnavailable as error:
            if getattr(error.__cause__, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                raise _damaged(artifact, "belongs to a tracking run that is gone") from error
            raise


def _repository(tracking_run_id: str, tracking_uri: str) -> "ArtifactRepository":
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

    root = RunsArtifactRepository.get_underlying_uri(f"{_SCHEME}{tracking_run_id}", tracking_uri)
    return get_artifact_repository(root, tracking_uri=tracking_uri, registry_uri=tracking_uri)


def same_file(path: Path, named: Path) -> None:
    """Give a file a second name, by a copy where there are no hard links. Raises FileNotFoundError."""
    try:
        os.link(path, named)
    except FileNotFoundError:
        raise
    except OSError:
        # Not every file system has hard links.
        shutil.copyfile(path, named)


def _parsed(uri: str) -> tuple[str, str]:
    """Tracking run and path in it."""
    tracking_run_id, _, stored = uri.removeprefix(_SCHEME).partition("/")
    if not uri.startswith(_SCHEME) or not stored:
        raise ValueError(f"artifact uri: expected {_SCHEME}<tracking run>/<path>, got {uri!r}")
    return tracking_run_id, stored


def _damaged(artifact: Artifact, what: str) -> ArtifactDamaged:
    words = f"stored file {artifact.uri} {what}"
    return ArtifactDamaged(Failure(kind="artifact_damaged", words=words, service="mlflow"))
