import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient

from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.digest import file_digest
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.domain.errors import ArtifactDamaged, OutsideUnavailable
from training_fsm.domain.facts import Artifact
from training_fsm.local.mlflow_server import MlflowServer
from training_fsm.ports import Artifacts

# MLflow's SQL store still says it the old way to SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow without a server."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(params=["sqlite", "server"])
def connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MlflowConnection:
    """A connection to each kind of MLflow; without a server artifacts lie below the working folder."""
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        return MlflowConnection(request.getfixturevalue("sqlite_uri"))
    server: MlflowServer = request.getfixturevalue("mlflow_server")
    return MlflowConnection(server.url)


@pytest.fixture
def tracking_run_id(connection: MlflowConnection) -> str:
    """A tracking run of this test."""
    return MlflowTracking(connection, f"experiment-{uuid.uuid4().hex[:8]}").open_run(str(uuid.uuid4()), {}, {})


@pytest.fixture
def store(connection: MlflowConnection) -> MlflowArtifacts:
    """The store."""
    return MlflowArtifacts(connection)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with bytes that are no text."""
    path = tmp_path / "made" / "checkpoint.zip"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 300)
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_back_as_it_was(store: MlflowArtifacts, tracking_run_id: str, file: Path, tmp_path: Path) -> None:
    """It is named by its digest, lies alone in the folder that was asked for, and leaves nothing beside itself."""
    port: Artifacts = store
    artifact = port.put(tracking_run_id, "checkpoints/7", file)
    prefix = file_digest(file)[:16]
    assert artifact.uri == f"runs:/{tracking_run_id}/checkpoints/7/{prefix}-checkpoint.zip"
    assert (artifact.sha256, artifact.size_bytes) == (file_digest(file), 76800)
    assert _names(file.parent) == ["checkpoint.zip"]
    fetched = port.get(artifact, tmp_path / "new" / "spool")
    assert fetched == tmp_path / "new" / "spool" / f"{prefix}-checkpoint.zip"
    assert fetched.read_bytes() == file.read_bytes()
    assert _names(fetched.parent) == [fetched.name]


def test_the_same_bytes_are_stored_once_and_others_beside_them(
    store: MlflowArtifacts, connection: MlflowConnection, tracking_run_id: str, file: Path, tmp_path: Path
) -> None:
    """Repeating is harmless, a fetched copy put back is the same artifact, and other bytes never replace it."""
    first = store.put(tracking_run_id, "data", file)
    assert store.put(tracking_run_id, "data", file) == first
    assert store.put(tracking_run_id, "data", store.get(first, tmp_path / "spool")) == first
    file.write_bytes(b"other")
    second = store.put(tracking_run_id, "data", file)
    stored = MlflowClient(connection.tracking_uri).list_artifacts(tracking_run_id, "data")
    assert {entry.file_size for entry in stored} == {76800, 5}
    assert len(stored) == 2
    assert store.get(second, tmp_path / "spool").read_bytes() == b"other"


def test_a_good_local_copy_is_used_and_a_bad_one_replaced(
    store: MlflowArtifacts, tracking_run_id: str, file: Path, tmp_path: Path
) -> None:
    """A whole copy needs no store at all; a torn one is fetched again."""
    artifact = store.put(tracking_run_id, "data", file)
    local = store.get(artifact, tmp_path / "spool")
    dead = MlflowArtifacts(MlflowConnection("http://127.0.0.1:9"))
    assert dead.get(artifact, tmp_path / "spool") == local
    local.write_bytes(file.read_bytes()[:1000])
    assert store.get(artifact, tmp_path / "spool").read_bytes() == file.read_bytes()


def test_altered_and_missing_files_are_damaged(
    store: MlflowArtifacts, tracking_run_id: str, file: Path, tmp_path: Path
) -> None:
    """Bytes that are not those of the log, and a file that is gone, are noticed and leave nothing behind."""
    artifact = store.put(tracking_run_id, "data", file)
    altered = artifact.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ArtifactDamaged, match=f"has sha256 {artifact.sha256}, the log says 0000") as caught:
        store.get(altered, tmp_path / "spool")
    assert caught.value.failure.kind == "artifact_damaged"
    assert _names(tmp_path / "spool") == []
    gone = artifact.model_copy(update={"uri": artifact.uri + ".gone"})
    with pytest.raises(ArtifactDamaged, match="is not in the store any more"):
        store.get(gone, tmp_path / "spool")
    nowhere = artifact.model_copy(update={"uri": f"runs:/{tracking_run_id}/never/stored.bin"})
    with pytest.raises(ArtifactDamaged, match="is not in the store any more"):
        store.get(nowhere, tmp_path / "spool")


def test_a_file_of_a_tracking_run_that_never_was_is_damaged(
    store: MlflowArtifacts, tracking_run_id: str, file: Path, tmp_path: Path
) -> None:
    """A tracking run that the store does not know is no outage: its files are gone, and trying again will not help."""
    artifact = store.put(tracking_run_id, "data", file)
    gone = artifact.model_copy(update={"uri": artifact.uri.replace(tracking_run_id, "0" * 32)})
    with pytest.raises(ArtifactDamaged, match="tracking run that is gone"):
        store.get(gone, tmp_path / "in")


def test_a_torn_upload_is_repaired(
    store: MlflowArtifacts, connection: MlflowConnection, tracking_run_id: str, file: Path, tmp_path: Path
) -> None:
    """A file under the right name with too few bytes is what a crash left, and is sent again."""
    torn = tmp_path / f"{file_digest(file)[:16]}-checkpoint.zip"
    torn.write_bytes(file.read_bytes()[:100])
    MlflowClient(connection.tracking_uri).log_artifact(tracking_run_id, str(torn), "data")
    artifact = store.put(tracking_run_id, "data", file)
    assert store.get(artifact, tmp_path / "spool").read_bytes() == file.read_bytes()


def test_what_is_fetched_is_a_copy(store: MlflowArtifacts, tracking_run_id: str, file: Path, tmp_path: Path) -> None:
    """Writing to what came back does not reach the store."""
    artifact = store.put(tracking_run_id, "data", file)
    store.get(artifact, tmp_path / "one").write_bytes(b"spoiled")
    assert store.get(artifact, tmp_path / "two").read_bytes() == file.read_bytes()


def test_a_dead_store_is_unavailable_and_not_damaged(file: Path, tmp_path: Path) -> None:
    """No answer says nothing about the bytes."""
    dead = MlflowArtifacts(MlflowConnection("http://127.0.0.1:9"))
    with pytest.raises(OutsideUnavailable, match="mlflow: store data/"):
        dead.put("run", "data", file)
    with pytest.raises(OutsideUnavailable, match="mlflow: fetch runs:/run/data/x"):
        dead.get(Artifact(uri="runs:/run/data/x", sha256="0" * 64, size_bytes=1), tmp_path / "spool")
    with pytest.raises(ValueError, match="artifact uri: expected runs:/"):
        dead.get(Artifact(uri="s3://bucket/x", sha256="0" * 64, size_bytes=1), tmp_path / "spool")


def test_a_deleted_file_is_gone_and_its_neighbours_are_not(
    store: MlflowArtifacts, tracking_run_id: str, file: Path, tmp_path: Path
) -> None:
    """Deleting again is no fault, nor is it where the whole tracking run is gone; and it can be stored again."""
    first = store.put(tracking_run_id, "data", file)
    file.write_bytes(b"other")
    second = store.put(tracking_run_id, "data", file)
    for _ in range(2):
        store.delete(first)
    with pytest.raises(ArtifactDamaged, match="is not in the store any more"):
        store.get(first, tmp_path / "spool")
    assert store.get(second, tmp_path / "spool").read_bytes() == b"other"
    store.delete(first.model_copy(update={"uri": first.uri.replace(tracking_run_id, "0" * 32)}))
    store.delete(second)
    assert store.get(store.put(tracking_run_id, "data", file), tmp_path / "again").read_bytes() == b"other"


def test_only_what_carries_its_digest_is_deleted(store: MlflowArtifacts, tracking_run_id: str, file: Path) -> None:
    """A URI that came to be a folder's, or another file's, deletes nothing."""
    artifact = store.put(tracking_run_id, "data", file)
    for wrong in ({"uri": f"runs:/{tracking_run_id}/data"}, {"sha256": "0" * 64}):
        with pytest.raises(ValueError, match="expected a name that begins with the file's digest"):
            store.delete(artifact.model_copy(update=wrong))
    assert store.put(tracking_run_id, "data", file) == artifact


def test_a_dead_store_and_a_folder_elsewhere_delete_nothing(
    sqlite_uri: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both say so: what was not reached must not be recorded as deleted."""
    dead = MlflowArtifacts(MlflowConnection("http://127.0.0.1:9"))
    name = f"data/{'0' * 16}-x"
    with pytest.raises(OutsideUnavailable, match="mlflow: delete runs:/run/data/"):
        dead.delete(Artifact(uri=f"runs:/run/{name}", sha256="0" * 64, size_bytes=1))
    monkeypatch.chdir(tmp_path)
    connection = MlflowConnection(sqlite_uri)
    run = MlflowTracking(connection, f"experiment-{uuid.uuid4().hex[:8]}").open_run(str(uuid.uuid4()), {}, {})
    artifact = MlflowArtifacts(connection).put(run, "data", file)
    root = Path(MlflowClient(sqlite_uri).get_run(run).info.artifact_uri.removeprefix("file://"))
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(OutsideUnavailable, match="is not on this machine"):
        MlflowArtifacts(connection).delete(artifact)
