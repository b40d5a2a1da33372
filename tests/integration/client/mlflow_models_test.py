import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient

from training_fsm.client.digest import folder_digest
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_models import MlflowModels
from training_fsm.client.mlflow_tags import DIGEST_TAG, KEY_TAG
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.ports import Models, RegisteredVersion, Tracking

# MLflow's SQL store still says it the old way to SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def _run_id() -> str:
    return str(uuid.uuid4())


def test_adapters_fit_their_ports(tracking: MlflowTracking, models: MlflowModels) -> None:
    """The type checker reads this test too."""
    ports: tuple[Tracking, Models] = (tracking, models)
    assert all(ports)


def test_a_model_is_registered_once_under_its_key(
    tracking: MlflowTracking, models: MlflowModels, client: MlflowClient, name: str, folder: Path
) -> None:
    """The same key gives the same version, another key the next, each with its run, digest and tags."""
    run = tracking.open_run(_run_id(), {}, {})
    assert models.find(name, "key-1") is None
    first = models.register(name, "key-1", folder, run, {"training_fsm.symbol": "EURUSD"})
    assert first == RegisteredVersion(version=1, digest=folder_digest(folder))
    assert models.register(name, "key-1", folder, run, {}) == models.find(name, "key-1") == first
    assert models.register(name, "key-2", folder, run, {}).version == 2
    version = client.get_model_version(name, "1")
    assert version.run_id == run
    assert version.tags == {KEY_TAG: "key-1", DIGEST_TAG: first.digest, "training_fsm.symbol": "EURUSD"}


def test_uploaded_files_are_those_that_the_digest_names(
    connection: MlflowConnection,
    tracking: MlflowTracking,
    models: MlflowModels,
    name: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    """What MLflow hands out under the version has the digest that was registered."""
    import mlflow

    run = tracking.open_run(_run_id(), {}, {})
    registered = models.register(name, "key", folder, run, {})
    fetched = mlflow.artifacts.download_artifacts(
        f"models:/{name}/1", dst_path=str(tmp_path / "fetched"), tracking_uri=connection.tracking_uri
    )
    assert folder_digest(Path(fetched)) == registered.digest


def test_a_crash_before_the_upload_ended_leaves_one_logged_model(
    tracking: MlflowTracking, models: MlflowModels, client: MlflowClient, name: str, folder: Path
) -> None:
    """An unfinished logged model with the key is completed, with this folder's bytes and digest."""
    run = tracking.open_run(_run_id(), {}, {})
    experiment_id = client.get_run(run).info.experiment_id
    begun = client.create_logged_model(experiment_id, name="model", tags={KEY_TAG: "key", DIGEST_TAG: "old"})
    registered = models.register(name, "key", folder, run, {})
    found = client.search_logged_models([experiment_id])
    assert [(model.model_id, str(model.status)) for model in found] == [(begun.model_id, "READY")]
    assert found[0].tags[DIGEST_TAG] == registered.digest == folder_digest(folder)


def test_a_crash_before_the_version_leaves_one_logged_model(
    tracking: MlflowTracking, models: MlflowModels, client: MlflowClient, name: str, folder: Path
) -> None:
    """A complete logged model with the key is used as it is."""
    run = tracking.open_run(_run_id(), {}, {})
    models.register(name, "key", folder, run, {})
    client.delete_model_version(name, "1")
    (folder / "MLmodel").write_text("flavors: {other: {}}\n")
    registered = models.register(name, "key", folder, run, {})
    experiment_id = client.get_run(run).info.experiment_id
    found = client.search_logged_models([experiment_id])
    assert len(found) == 1
    assert registered.digest == found[0].tags[DIGEST_TAG] != folder_digest(folder)


def test_aliases_follow(tracking: MlflowTracking, models: MlflowModels, name: str, folder: Path) -> None:
    """An alias is absent, points, and moves; MLflow is asked each time."""
    assert models.alias_version(name, "candidate") is None
    run = tracking.open_run(_run_id(), {}, {})
    for key in ("key-1", "key-2"):
        models.register(name, key, folder, run, {})
    assert models.alias_version(name, "candidate") is None
    for version in (1, 2, 2):
        models.set_alias(name, "candidate", version)
        assert models.alias_version(name, "candidate") == version


def test_refusals_of_mlflow_are_said_in_its_words(models: MlflowModels, name: str) -> None:
    """An alias on a model that is not there is an error that says what was tried."""
    with pytest.raises(OutsideUnavailable, match=rf"mlflow: set alias candidate of {name}: .*{name}"):
        models.set_alias(name, "candidate", 1)


def test_a_quote_cannot_reach_the_filter(models: MlflowModels) -> None:
    """MLflow's filters have no escape, so a quote is refused before it changes what is asked."""
    with pytest.raises(ValueError, match="without '"):
        models.find("a' or name LIKE '%", "key")


def test_a_dead_server_is_unavailable() -> None:
    """Nobody listens: each adapter says which service is away and what it wanted, and keeps a password to itself."""
    dead = MlflowConnection("http://user:my@s3cret@127.0.0.1:9")
    with pytest.raises(OutsideUnavailable, match=r"mlflow: open the tracking run of run-1: .*127\.0\.0\.1") as caught:
        MlflowTracking(dead).open_run("run-1", {}, {})
    assert caught.value.service == "mlflow"
    assert "s3cret" not in str(caught.value)
