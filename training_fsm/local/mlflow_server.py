"""MLflow's own server on loopback: SQLite for runs and models, artifacts through the server."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from training_fsm.local.process import ManagedProcess, answers_http, claim_port, start_process, wait_until

START_TIMEOUT_S = 120


@dataclass(frozen=True)
class MlflowServer:
    """A running server; ``url`` is its tracking and registry URI. Leaving the context stops it."""

    url: str
    port: int
    process: ManagedProcess

    def answers(self) -> bool:
        """Whether it is ready."""
        return answers_http(self.port, "/health")

    def stop(self) -> None:
        """Stop in order, so that a running upload comes to its end."""
        self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_mlflow_server(data_dir: Path, *, log: Path, port: int | None = None) -> MlflowServer:
    """Start `mlflow server` with one worker; runs, models and artifacts are kept in ``data_dir``.

    Raises:
        StartFailed: the port is taken, or the server did not become ready.
    """
    server = launch_mlflow_server(data_dir, log=log, port=port)
    try:
        wait_until(server.answers, server.process, START_TIMEOUT_S, "MLflow")
    except BaseException:
        server.stop()
        raise
    return server


def launch_mlflow_server(data_dir: Path, *, log: Path, port: int | None = None) -> MlflowServer:
    """Start the same server without waiting for it: it takes seconds, in which others can start.

    Raises:
        StartFailed: the port is taken.
    """
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    chosen_port = claim_port(port, "MLflow")
    url = f"http://127.0.0.1:{chosen_port}"
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(chosen_port)]
    argv += ["--workers", "1", "--backend-store-uri", f"sqlite:///{data_dir / 'mlflow.db'}"]
    argv += ["--serve-artifacts", "--artifacts-destination", str(data_dir / "artifacts")]
    process = start_process("mlflow", argv, log=log, env=_environment(), cwd=data_dir)
    return MlflowServer(url, chosen_port, process)


def _environment() -> dict[str, str]:
    """Our environment without MLflow's client settings, which the server would take for its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
    return inherited | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # two processes less
    }
