"""One connection to MLflow; what it raises becomes errors of the domain."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from training_fsm.domain.errors import OutsideUnavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
        except (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError) as error:
            # ImportError: the driver of the cloud where somebody's artifacts lie is not installed.
            raise OutsideUnavailable("mlflow", without_password(f"{what}: {error}")) from error

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


def without_password(words: str) -> str:
    """Words that may be published: MLflow quotes its URI, and that may hold a password."""
    return re.sub(r"(\w+://)[^/\s]+@", r"\1", words)
