"""MLflow's model registry, each call at most once as far as MLflow can know."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from training_fsm.client import mlflow_files, mlflow_lookup
from training_fsm.client.digest import folder_digest
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_tags import DIGEST_TAG, KEY_TAG, TAG_CHARS, equals, quoted
from training_fsm.ports import FoundModel, RegisteredVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


class MlflowModels:
    """Implements Models; logged models and versions carry an idempotency key as a tag and are searched for first."""

    def __init__(self, connection: MlflowConnection) -> None:
        self._connection = connection

    def look_up(self, parent: str) -> FoundModel:
        """What `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `runs:/RUN/PATH` or the id of a run names.

        A run's id, ours or MLflow's, names the newest version that was registered from it.
        Raises ParentMissing, OutsideUnavailable.
        """
        return mlflow_lookup.look_up(self._connection, parent)

    def fetch(self, found: FoundModel, into: Path) -> Path:
        """Copy its files, or its one file, into a folder, and check them by `found.digest` where there is one.

        What was in the folder is replaced. Returns the folder, or the one file in it.
        Raises ParentMissing where they are gone, ArtifactDamaged where the digest is another, OutsideUnavailable.
        """
        return mlflow_files.fetch(self._connection, found, into)

    def find(self, name: str, key: str) -> RegisteredVersion | None:
        """The version that carries this idempotency key, if any."""
        with self._connection.calls(f"find a version of {name}") as client:
            found = client.search_model_versions(f"name = {quoted(name)} and {equals(KEY_TAG, key)}")
            if not found:
                return None
            first = min(found, key=lambda version: int(version.version))
            return RegisteredVersion(version=int(first.version), digest=first.tags[DIGEST_TAG])

    def register(
        self, name: str, key: str, folder: Path, tracking_run_id: str, tags: Mapping[str, str]
    ) -> RegisteredVersion:
        """Upload a packaged model folder and make it a version of `name` tagged with `key`.

        Takes up what an earlier try left: a version under this key is returned as it is, a complete logged model is
        used, an incomplete one is completed. Call under the run's lease: two at once make two.
        """
        found = self.find(name, key)
        if found is not None:
            return found
        folder_sha256 = folder_digest(folder)
        with self._connection.calls(f"register a version of {name}") as client:
            self._connection.make_global()
            if not client.search_registered_models(f"name = {quoted(name)}"):
                _create_registered_model(client, name)
            model = _logged_model(client, key, folder, folder_sha256, tracking_run_id)
            digest = model.tags[DIGEST_TAG]
            marks = {KEY_TAG: key, DIGEST_TAG: digest}
            version = client.create_model_version(
                name,
                source=f"models:/{model.model_id}",
                run_id=tracking_run_id,
                tags={tag: value[:TAG_CHARS] for tag, value in tags.items()} | marks,
                model_id=model.model_id,
            )
            return RegisteredVersion(version=int(version.version), digest=digest)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        with self._connection.calls(f"set alias {alias} of {name}") as client:
            client.set_registered_model_alias(name, alias, str(version))

    def alias_version(self, name: str, alias: str) -> int | None:
        """The version that an alias points at; None without the alias, or the model."""
        with self._connection.calls(f"read alias {alias} of {name}") as client:
            found = client.search_registered_models(f"name = {quoted(name)}")
            version = found[0].aliases.get(alias) if found else None
            return None if version is None else int(version)


def _create_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        # Another run of the same model name was first.
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged_model(
    client: "MlflowClient", key: str, folder: Path, folder_sha256: str, tracking_run_id: str
) -> "LoggedModel":
    """A READY logged model with this key: the one that is there, or this folder uploaded."""
    experiment_id = client.get_run(tracking_run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], filter_string=equals(KEY_TAG, key))
    for model in found:
        if str(model.status) == "READY":
            return model
    marks = {KEY_TAG: key, DIGEST_TAG: folder_sha256}
    if found:
        model = found[0]
        client.set_logged_model_tags(model.model_id, marks)
    else:
        model = client.create_logged_model(experiment_id, name="model", source_run_id=tracking_run_id, tags=marks)
    client.log_model_artifacts(model.model_id, str(folder))
    return client.finalize_logged_model(model.model_id, "READY")
