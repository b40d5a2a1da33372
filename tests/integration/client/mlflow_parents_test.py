import shutil
import uuid
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import pytest
from mlflow import MlflowClient

from training_fsm.client.digest import file_digest, folder_digest
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_models import MlflowModels
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.client.model_folder import the_zip
from training_fsm.domain.errors import ArtifactDamaged, OutsideUnavailable, ParentMissing
from training_fsm.domain.facts import ModelRef
from training_fsm.local.mlflow_server import MlflowServer
from training_fsm.ports import FoundModel

# MLflow's SQL store still says it the old way to SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def run(tracking: MlflowTracking) -> str:
    """A tracking run."""
    return tracking.open_run(str(uuid.uuid4()), {}, {})


@pytest.fixture
def sb3_zip(tmp_path: Path) -> Path:
    """Stands for a model that somebody saved with Stable-Baselines3; the registry does not look inside."""
    with zipfile.ZipFile(tmp_path / "ppo.zip", "w") as archive:
        archive.writestr("data", "{}")
    return tmp_path / "ppo.zip"


def _register(models: MlflowModels, name: str, folder: Path, run: str, run_id: str = "run-1") -> None:
    tags = {"training_fsm.run_id": run_id, "training_fsm.agent": "PPO"}
    models.register(name, uuid.uuid4().hex, folder, run, tags)


def _words(models: MlflowModels, parent: str) -> str:
    """What the user hears about a parent that is not there."""
    with pytest.raises(ParentMissing) as caught:
        models.look_up(parent)
    failure = caught.value.failure
    assert (failure.kind, failure.service, failure.field) == ("parent_missing", "mlflow", "parent")
    return failure.words


def _remove_stored(
    connection: MlflowConnection, request: pytest.FixtureRequest, server_folder: Path, location: str
) -> None:
    """Delete files below MLflow's feet, as a clean-up of its artifact store does."""
    if connection.tracking_uri.startswith("http"):
        request.getfixturevalue("mlflow_server")
        location = str(server_folder / "mlflow" / "artifacts" / urlparse(location).path.lstrip("/"))
    assert Path(location).exists()
    shutil.rmtree(location)


def test_a_version_is_found_by_number_alias_and_both_kinds_of_run(
    models: MlflowModels, name: str, folder: Path, run: str
) -> None:
    """Each way gives number, digest and agent; a run's id names its newest version."""
    run_id = str(uuid.uuid4())
    for _ in range(3):
        _register(models, name, folder, run, run_id)
    models.set_alias(name, "candidate", 2)
    first = models.look_up(f"models:/{name}/1")
    assert first.model == ModelRef(name=name, version=1)
    assert (first.digest, first.agent) == (folder_digest(folder), "PPO")
    assert models.look_up(f"models:/{name}@candidate").model == ModelRef(name=name, version=2)
    assert models.look_up(run_id) == models.look_up(run) == models.look_up(f"models:/{name}/3")


def test_a_registered_folder_is_copied_and_can_be_copied_again(
    models: MlflowModels, name: str, folder: Path, run: str, tmp_path: Path
) -> None:
    """The copy has the registered digest and replaces what an earlier try left; the store's own files stay ours."""
    _register(models, name, folder, run)
    found = models.look_up(f"models:/{name}/1")
    into = tmp_path / "spool" / "parent"
    fetched = models.fetch(found, into)
    assert fetched == into
    assert folder_digest(fetched) == found.digest
    (fetched / "MLmodel").write_text("altered here")
    (fetched / "left").write_text("over")
    assert folder_digest(models.fetch(found, into)) == found.digest
    assert [path.name for path in into.parent.iterdir()] == ["parent"]


@pytest.mark.parametrize("scheme", ["runs", "plain"])
@pytest.mark.parametrize("end", ["", "/ppo.zip"])
def test_a_zip_logged_by_hand_is_a_version_like_any_other(
    models: MlflowModels,
    client: MlflowClient,
    name: str,
    sb3_zip: Path,
    run: str,
    tmp_path: Path,
    scheme: str,
    end: str,
) -> None:
    """Its version may point at a folder or at the file, in a run or by a path; it carries no digest and no agent."""
    client.log_artifact(run, str(sb3_zip), "sb3")
    root = f"runs:/{run}" if scheme == "runs" else client.get_run(run).info.artifact_uri
    client.create_registered_model(name)
    client.create_model_version(name, source=f"{root}/sb3{end}", run_id=run)
    found = models.look_up(run)
    assert (found.model, found.digest, found.agent) == (ModelRef(name=name, version=1), None, None)
    fetched = models.fetch(found, tmp_path / "spool" / "parent")
    assert fetched == tmp_path / "spool" / "parent" / end.strip("/")
    there = the_zip(fetched)
    assert there is not None
    assert file_digest(there) == file_digest(sb3_zip)


@pytest.mark.parametrize("folder_name", ["sb3", "sb3/deep er", "ü&+@=:"])
def test_a_file_of_a_run_that_is_no_version(
    models: MlflowModels, client: MlflowClient, sb3_zip: Path, run: str, tmp_path: Path, folder_name: str
) -> None:
    """A zip or its folder, also where a name has spaces and signs."""
    client.log_artifact(run, str(sb3_zip), folder_name)
    file = models.look_up(f"runs:/{run}/{folder_name}/ppo.zip")
    assert (file.model, file.digest, file.agent) == (None, None, None)
    assert models.fetch(file, tmp_path / "file") == tmp_path / "file" / "ppo.zip"
    whole = models.fetch(models.look_up(f"runs:/{run}/{folder_name}/"), tmp_path / "folder")
    assert [path.name for path in whole.iterdir()] == ["ppo.zip"]
    assert file_digest(whole / "ppo.zip") == file_digest(tmp_path / "file" / "ppo.zip") == file_digest(sb3_zip)


def test_a_logged_model_is_found_under_its_name_in_the_run(
    models: MlflowModels, name: str, folder: Path, run: str, tmp_path: Path
) -> None:
    """MLflow 3 keeps logged models beside a run's files, and shows them under the same addresses."""
    _register(models, name, folder, run)
    fetched = models.fetch(models.look_up(f"runs:/{run}/model"), tmp_path / "parent")
    assert folder_digest(fetched) == folder_digest(folder)


def test_what_is_not_there_is_said_with_what_is(models: MlflowModels, name: str, folder: Path, run: str) -> None:
    """Missing versions, aliases, models, runs and files: each error names what was looked for and what there is."""
    for _ in range(4):
        _register(models, name, folder, run)
    models.set_alias(name, "candidate", 4)
    assert _words(models, f"models:/{name}/7") == f"model {name} has no version 7; it has 1 to 4"
    assert _words(models, f"models:/{name}@champion") == f"model {name} has no alias champion; it has candidate"
    for parent in (f"models:/{name}-2/7", f"models:/{name}-2@champion"):
        assert _words(models, parent).startswith(f"MLflow has no model {name}-2; it has ")
    assert _words(models, "models:/a:b/1").startswith("MLflow has no model a:b; it has ")
    assert "no model version in MLflow comes from run nobody" in _words(models, "nobody")
    assert "without '" in _words(models, "models:/it's/1")
    for sign in "#?%'":
        assert f"expected a name without {sign}, " in _words(models, f"runs:/{run}/a{sign}b/ppo.zip")
    assert _words(models, f"runs:/{'0' * 32}/sb3") == f"runs:/{'0' * 32}/sb3: MLflow has no run {'0' * 32}"


def test_a_missing_file_of_a_run_is_said_with_what_lies_beside(
    models: MlflowModels, client: MlflowClient, sb3_zip: Path, run: str
) -> None:
    """The folder's content helps to see a typing error."""
    client.log_artifact(run, str(sb3_zip), "sb3")
    words = f"runs:/{run}/sb3/pp0.zip: there is no pp0.zip in runs:/{run}/sb3; it has ppo.zip"
    assert _words(models, f"runs:/{run}/sb3/pp0.zip") == words
    assert _words(models, f"runs:/{run}/sb4").endswith(f"there is no sb4 in runs:/{run}; it has sb3")
    assert _words(models, f"runs:/{run}/sb4/ppo.zip").endswith("it has none")


def test_deleted_versions_are_not_there(
    models: MlflowModels, client: MlflowClient, name: str, folder: Path, run: str
) -> None:
    """A hole in the numbers shows, and the run names the newest of what is left."""
    for _ in range(4):
        _register(models, name, folder, run)
    for version in ("2", "4"):
        client.delete_model_version(name, version)
    assert _words(models, f"models:/{name}/2") == f"model {name} has no version 2; it has 1, 3"
    assert models.look_up(run).model == ModelRef(name=name, version=3)


def test_the_version_stays_when_the_alias_moves(
    models: MlflowModels, name: str, folder: Path, run: str, tmp_path: Path
) -> None:
    """What the first look found is what is fetched."""
    _register(models, name, folder, run)
    models.set_alias(name, "champion", 1)
    found, before = models.look_up(f"models:/{name}@champion"), folder_digest(folder)
    (folder / "MLmodel").write_text("flavors: {other: {}}\n")
    _register(models, name, folder, run)
    models.set_alias(name, "champion", 2)
    assert found.digest == before == folder_digest(models.fetch(found, tmp_path / "parent"))


def test_other_bytes_than_the_digest_says_are_refused(
    models: MlflowModels, client: MlflowClient, name: str, folder: Path, run: str, tmp_path: Path
) -> None:
    """Files altered in the store: the error has both digests, and nothing is left to be used by mistake."""
    _register(models, name, folder, run)
    found = models.look_up(f"models:/{name}/1")
    logged_model = client.get_model_version(name, "1").source.removeprefix("models:/")
    (folder / "artifacts" / "policy.npz").write_bytes(b"other")
    client.log_model_artifacts(logged_model, str(folder))
    with pytest.raises(ArtifactDamaged) as caught:
        models.fetch(found, tmp_path / "parent")
    words = f"stored files of model {name}/1 were altered: they have sha256 {folder_digest(folder)}"
    assert caught.value.failure.words == f"{words}, expected {found.digest}"
    assert caught.value.failure.kind == "artifact_damaged"
    assert not (tmp_path / "parent").exists()


def test_a_version_outlives_its_logged_model_but_not_its_files(
    connection: MlflowConnection,
    models: MlflowModels,
    client: MlflowClient,
    name: str,
    folder: Path,
    run: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    server_folder: Path,
) -> None:
    """MLflow's deletion of a logged model is a mark, its files stay; once they are gone, the parent is missing."""
    _register(models, name, folder, run)
    found = models.look_up(f"models:/{name}/1")
    client.delete_logged_model(client.get_model_version(name, "1").source.removeprefix("models:/"))
    assert folder_digest(models.fetch(found, tmp_path / "parent")) == found.digest
    _remove_stored(connection, request, server_folder, found.location)
    with pytest.raises(ParentMissing, match=rf"^model {name}/1: there is no artifacts in .*; it has none$") as caught:
        models.fetch(found, tmp_path / "parent")
    assert caught.value.failure.field == "parent"


def test_a_version_of_a_run_that_is_gone(
    models: MlflowModels, client: MlflowClient, name: str, run: str, tmp_path: Path
) -> None:
    """Its files are looked for in a run that MLflow does not have any more."""
    client.create_registered_model(name)
    found = FoundModel(ModelRef(name=name, version=1), f"runs:/{'0' * 32}/sb3", None, None)
    with pytest.raises(ParentMissing, match=rf"^model {name}/1: MLflow has no run 0+$"):
        models.fetch(found, tmp_path / "parent")
    with pytest.raises(ParentMissing, match=rf"^model {name}/1: there is no sb3 in runs:/{run}; it has none$"):
        models.fetch(FoundModel(found.model, f"runs:/{run}/sb3", None, None), tmp_path / "parent")


def test_an_empty_folder_is_no_parent(models: MlflowModels, tmp_path: Path) -> None:
    """A place that exists and holds nothing is said to be empty."""
    (tmp_path / "store" / "empty").mkdir(parents=True)
    found = FoundModel(ModelRef(name="m", version=1), str(tmp_path / "store" / "empty"), None, None)
    with pytest.raises(ParentMissing, match=r"^model m/1 has no files: .*empty is empty$"):
        models.fetch(found, tmp_path / "parent")


def test_a_store_without_its_driver_is_away_and_not_a_crash(models: MlflowModels, tmp_path: Path) -> None:
    """Somebody's version lies in a cloud, or under a scheme, that this worker cannot read."""
    for location in ("gs://bucket/model", "nowhere://bucket/model"):
        found = FoundModel(ModelRef(name="m", version=1), location, None, None)
        with pytest.raises(OutsideUnavailable, match=r"^mlflow: fetch model m/1: "):
            models.fetch(found, tmp_path / "parent")


def test_a_dead_server_is_not_a_missing_parent(
    mlflow_server: MlflowServer, sb3_zip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A look and a copy that reach nobody may go better the next time."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    alive, dead = MlflowConnection(mlflow_server.url), MlflowModels(MlflowConnection(DEAD))
    run = MlflowTracking(alive).open_run(str(uuid.uuid4()), {}, {})
    MlflowClient(mlflow_server.url).log_artifact(run, str(sb3_zip), "sb3")
    found = MlflowModels(alive).look_up(f"runs:/{run}/sb3")
    for parent in ("models:/m/1", "models:/m@champion", f"runs:/{run}/sb3", run):
        with pytest.raises(OutsideUnavailable, match=f"^mlflow: look for {parent}: "):
            dead.look_up(parent)
    with pytest.raises(OutsideUnavailable, match=f"^mlflow: fetch runs:/{run}/sb3: "):
        dead.fetch(found, tmp_path / "parent")
