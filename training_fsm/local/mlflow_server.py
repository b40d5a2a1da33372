"""MLflow's own server on loopback: SQLite for runs and models, artifacts through the server."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from training_fsm.local.process import ManagedProcess, claim_port, start_process, wait_until

_TIMEOUT_S = 120


@dataclass(frozen=True)
class MlflowServer:
    """A running server; ``url`` is its tracking and registry URI. Leaving the context stops it."""

    url: str
    process: ManagedProcess

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
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    chosen_port = claim_port(port, "MLflow")
    url = f"http://127.0.0.1:{chosen_port}"
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(chosen_port)]
    argv += ["--workers", "1", "--backend-store-uri", f"sqlite:///{data_dir / 'mlflow.db'}"]
    argv += ["--serve-artifacts", "--artifacts-destination", str(data_dir / "artifacts")]
    process = start_process("mlflow", argv, log=log, env=_environment(), cwd=data_dir)
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=2) as client:
            wait_until(lambda: _is_healthy(client), process, _TIMEOUT_S, "MLflow")
    except BaseException:
        process.stop()
        raise
    return MlflowServer(url, process)


def _environment() -> dict[str, str]:
    """Our environment without MLflow's client settings, which the server would take for its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
    return inherited | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # two processes less
    }


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False
