"""MLflow's server keeps runs and artifacts over a restart, and is reached over http alone."""

import socket
from pathlib import Path

from mlflow import MlflowClient

from training_fsm.local.mlflow_server import start_mlflow_server


def test_runs_and_artifacts_survive_a_restart(tmp_path: Path) -> None:
    """What one client logs through the first server, another one reads from the second, on the same port."""
    data_dir, log = tmp_path / "my data", tmp_path / "log"
    sent = tmp_path / "weights.bin"
    sent.write_bytes(b"\x00\x01")
    with start_mlflow_server(data_dir, log=log) as server:
        client = MlflowClient(server.url)
        run_id = client.create_run("0").info.run_id
        client.log_metric(run_id, "sharpe", 0.5)
        client.log_artifact(run_id, str(sent))
        port = int(server.url.rpartition(":")[2])
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.2", port)) != 0
    with start_mlflow_server(data_dir, log=log, port=port) as server:
        run = MlflowClient(server.url).get_run(run_id)
        assert run.data.metrics == {"sharpe": 0.5}
        assert str(run.info.artifact_uri).startswith("mlflow-artifacts:/")
        received = MlflowClient(server.url).download_artifacts(run_id, "weights.bin", str(tmp_path / "received"))
        assert Path(received).read_bytes() == b"\x00\x01"
    assert not server.process.alive()
