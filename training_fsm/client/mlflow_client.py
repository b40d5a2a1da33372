"""MLflow: experiment tracking and the model registry, each call at most once as far as MLflow can know."""

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from training_fsm.client.digest import folder_digest
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.ports import MetricPoint, RegisteredVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

_Item = TypeVar("_Item")

EXPERIMENT = "drl-trading"
RUN_TAG = "training_fsm.run_id"
KEY_TAG = "training_fsm.key"
DIGEST_TAG = "training_fsm.digest"

_METRICS_AT_ONCE, _PARAMS_AT_ONCE, _TAGS_AT_ONCE = 1000, 100, 100
_PARAM_CHARS, _TAG_CHARS = 6000, 5000
_SETTINGS = {
    # Retries of MLflow's own would hide a dead server for minutes; ours are events.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # It would copy a lock file from the working folder into every model.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def set_mlflow_defaults() -> None:
    """Settings that MLflow reads from the environment only, where the environment has none of its own."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


class MlflowConnection:
    """One client for a tracking URI, made at its first use: MLflow needs up to two seconds for that.

    Runs, models and artifacts all come from this URI.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()

    @contextmanager
    def calls(self, what: str) -> Iterator["MlflowClient"]:
        """The client; what it raises becomes OutsideUnavailable that says what was tried."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError  # a tracking URI may be a database

        try:
            yield self._made()
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            raise OutsideUnavailable("mlflow", _without_password(f"{what}: {error}")) from error

    def make_global(self) -> None:
        """Make this MLflow's global tracking URI: its SQL registry looks up a version's source there, not here."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)

    def _made(self) -> "MlflowClient":
        with self._lock:
            if self._client is None:
                set_mlflow_defaults()
                from mlflow import MlflowClient

                self._client = MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)
            return self._client


class MlflowTracking:
    """Implements Tracking; a tracking run carries the training run's id as a tag."""

    def __init__(self, connection: MlflowConnection, experiment: str = EXPERIMENT) -> None:
        self._connection, self._experiment = connection, experiment

    def warm_up(self) -> None:
        """Pay now what the first call costs: the client, and the experiment where it is not there yet."""
        with self._connection.calls("look for the experiment") as client:
            self._experiment_id(client)

    def open_run(self, run_id: str, parameters: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """The tracking run of this training run, found by tag or created; ended ones run again.

        Parameters beyond MLflow's length limits are cut. Call under the run's lease: two at once make two.
        """
        with self._connection.calls(f"open the tracking run of {run_id}") as client:
            experiment_id = self._experiment_id(client)
            wanted = _equals(RUN_TAG, run_id)
            found = client.search_runs([experiment_id], wanted, order_by=["attributes.start_time ASC"], max_results=1)
            if found:
                tracking_run_id = found[0].info.run_id
                if found[0].info.status != "RUNNING":
                    client.update_run(tracking_run_id, status="RUNNING")
            else:
                name = f"{self._experiment}_{datetime.now(UTC):%Y%m%d_%H%M%S}"
                created = client.create_run(experiment_id, tags={RUN_TAG: run_id}, run_name=name)
                tracking_run_id = created.info.run_id
            self._log_parameters(client, tracking_run_id, parameters)
        self.set_tags(tracking_run_id, tags)
        return str(tracking_run_id)

    def log_metrics(self, tracking_run_id: str, points: Sequence[MetricPoint]) -> None:
        """Store points in batches of at most 1000; repeating the same points adds nothing."""
        from mlflow.entities import Metric

        with self._connection.calls(f"log {len(points)} metric points") as client:
            metrics = [Metric(point.name, point.value, point.timestamp_ms, point.step) for point in points]
            for chunk in _chunks(metrics, _METRICS_AT_ONCE):
                client.log_batch(tracking_run_id, metrics=chunk)

    def set_tags(self, tracking_run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a tracking run; beyond MLflow's length limit they are cut."""
        from mlflow.entities import RunTag

        with self._connection.calls("set tags") as client:
            for chunk in _chunks([RunTag(name, value[:_TAG_CHARS]) for name, value in tags.items()], _TAGS_AT_ONCE):
                client.log_batch(tracking_run_id, tags=chunk)

    def close_run(self, tracking_run_id: str, status: str) -> None:
        """End it as FINISHED, FAILED or KILLED."""
        with self._connection.calls("end the tracking run") as client:
            client.set_terminated(tracking_run_id, status)

    def _log_parameters(self, client: "MlflowClient", tracking_run_id: str, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value[:_PARAM_CHARS]) for name, value in parameters.items()]
        for chunk in _chunks(params, _PARAMS_AT_ONCE):
            client.log_batch(tracking_run_id, params=chunk)

    def _experiment_id(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(client.create_experiment(self._experiment))
            except MlflowException as error:
                # Another worker made it in between.
                found = client.get_experiment_by_name(self._experiment)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                    raise
        return str(found.experiment_id)


class MlflowModels:
    """Implements Models; logged models and versions carry an idempotency key as a tag and are searched for first."""

    def __init__(self, connection: MlflowConnection) -> None:
        self._connection = connection

    def find(self, name: str, key: str) -> RegisteredVersion | None:
        """The version that carries this idempotency key, if any."""
        with self._connection.calls(f"find a version of {name}") as client:
            found = client.search_model_versions(f"name = {_quoted(name)} and {_equals(KEY_TAG, key)}")
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
            if not client.search_registered_models(f"name = {_quoted(name)}"):
                _create_registered_model(client, name)
            model = _logged_model(client, key, folder, folder_sha256, tracking_run_id)
            digest = model.tags[DIGEST_TAG]
            marks = {KEY_TAG: key, DIGEST_TAG: digest}
            version = client.create_model_version(
                name,
                source=f"models:/{model.model_id}",
                run_id=tracking_run_id,
                tags={tag: value[:_TAG_CHARS] for tag, value in tags.items()} | marks,
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
            found = client.search_registered_models(f"name = {_quoted(name)}")
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
    found = client.search_logged_models([experiment_id], filter_string=_equals(KEY_TAG, key))
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


def _without_password(words: str) -> str:
    """Words that may be published: MLflow quotes its URI, and that may hold a password."""
    return re.sub(r"(\w+://)[^/\s]+@", r"\1", words)


def _equals(tag: str, value: str) -> str:
    return f"tags.`{tag}` = {_quoted(value)}"


def _quoted(value: str) -> str:
    """A string in MLflow's filter language, which has no escape for a quote."""
    if "'" in value:
        raise ValueError(f"expected a name or key without ', got {value!r}")
    return f"'{value}'"


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
