"""MLflow's experiment tracking, each call at most once as far as MLflow can know."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_tags import RUN_TAG, TAG_CHARS, equals
from training_fsm.ports import MetricPoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

_Item = TypeVar("_Item")

EXPERIMENT = "drl-trading"

_METRICS_AT_ONCE, _PARAMS_AT_ONCE, _TAGS_AT_ONCE = 1000, 100, 100
_PARAM_CHARS = 6000


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
            wanted = equals(RUN_TAG, run_id)
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
            for chunk in _chunks([RunTag(name, value[:TAG_CHARS]) for name, value in tags.items()], _TAGS_AT_ONCE):
                client.log_batch(tracking_run_id, tags=chunk)

    def close_run(self, tracking_run_id: str, status: str) -> None:
        """End it as FINISHED, FAILED or KILLED."""
        with self._connection.calls("end the tracking run") as client:
            client.set_terminated(tracking_run_id, status)

    def open_runs(self) -> tuple[tuple[str, str], ...]:
        """(tracking run, training run) of the experiment's tracking runs that have not ended, at most 1000."""
        with self._connection.calls("look for open tracking runs") as client:
            wanted = "attributes.status = 'RUNNING'"
            found = client.search_runs([self._experiment_id(client)], wanted, max_results=1000)
            named = ((run.info.run_id, run.data.tags.get(RUN_TAG)) for run in found)
            return tuple((tracking_run_id, run_id) for tracking_run_id, run_id in named if run_id is not None)

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


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
