import uuid

import pytest
from mlflow import MlflowClient

from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.ports import MetricPoint

# MLflow's SQL store still says it the old way to SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def _run_id() -> str:
    return str(uuid.uuid4())


def test_a_run_is_opened_once_and_again_after_its_end(tracking: MlflowTracking, client: MlflowClient) -> None:
    """A resume finds the tracking run by its tag, and a failed one runs again; another training run gets another."""
    run_id = _run_id()
    opened = tracking.open_run(run_id, {"gamma": "0.99"}, {"symbol": "EURUSD"})
    tracking.close_run(opened, "FAILED")
    assert client.get_run(opened).info.status == "FAILED"
    assert tracking.open_run(run_id, {"gamma": "0.99"}, {"symbol": "GBPUSD"}) == opened
    assert tracking.open_run(_run_id(), {}, {}) != opened
    run = client.get_run(opened)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"gamma": "0.99"}
    assert run.data.tags["symbol"] == "GBPUSD"
    assert run.data.tags["training_fsm.run_id"] == run_id
    experiment = client.get_experiment(run.info.experiment_id).name
    assert run.info.run_name.startswith(f"{experiment}_20")


def test_more_parameters_than_a_batch_and_longer_than_a_field(tracking: MlflowTracking, client: MlflowClient) -> None:
    """150 parameters arrive, and one beyond MLflow's limit is cut."""
    parameters = {f"p{i}": str(i) for i in range(150)} | {"long": "x" * 9000}
    run = client.get_run(tracking.open_run(_run_id(), parameters, {"long": "y" * 9000}))
    assert len(run.data.params) == 151
    assert run.data.params["p149"] == "149"
    assert set(run.data.params["long"]) == {"x"}
    assert set(run.data.tags["long"]) == {"y"}


def test_repeated_points_are_stored_once(tracking: MlflowTracking, client: MlflowClient) -> None:
    """A take-over sends the same points with the same timestamps; a curve beyond one batch keeps its order."""
    run = tracking.open_run(_run_id(), {}, {})
    points = [MetricPoint("reward", float(step), step, 1_700_000_000_000 + step) for step in range(1203)]
    tracking.log_metrics(run, points)
    tracking.log_metrics(run, points[100:])
    history = client.get_metric_history(run, "reward")
    assert sorted(metric.step for metric in history) == list(range(1203))
    assert {(metric.step, metric.timestamp) for metric in history} == {(p.step, p.timestamp_ms) for p in points}


def test_infinite_metrics_are_taken(tracking: MlflowTracking, client: MlflowClient) -> None:
    """A profit factor without losses is stored, as the largest number that MLflow has."""
    run = tracking.open_run(_run_id(), {}, {})
    tracking.log_metrics(run, [MetricPoint("profit_factor", float("inf"), 0, 1_700_000_000_000)])
    assert client.get_run(run).data.metrics["profit_factor"] > 1e300
