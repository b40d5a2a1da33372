"""MLflow in both its kinds, and adapters to it that no other test uses."""

import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient

from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_models import MlflowModels
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.local.mlflow_server import MlflowServer


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow without a server."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(params=["sqlite", "server"])
def connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MlflowConnection:
    """A connection to each kind of MLflow; without a server it keeps artifacts below the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    if request.param == "server":
        server: MlflowServer = request.getfixturevalue("mlflow_server")
        return MlflowConnection(server.url)
    return MlflowConnection(request.getfixturevalue("sqlite_uri"))


@pytest.fixture
def client(connection: MlflowConnection) -> MlflowClient:
    """MLflow's own client, to see what is really there."""
    return MlflowClient(connection.tracking_uri, registry_uri=connection.tracking_uri)


@pytest.fixture
def tracking(connection: MlflowConnection) -> MlflowTracking:
    """Runs in an experiment of this test."""
    return MlflowTracking(connection, f"drl-trading-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def models(connection: MlflowConnection) -> MlflowModels:
    """The registry."""
    return MlflowModels(connection)


@pytest.fixture
def name() -> str:
    """A model name of this test, with every kind of character that a request allows."""
    return f"EUR.usd-ppo_{uuid.uuid4().hex[:8]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stands for a packaged model; the registry does not look inside."""
    (tmp_path / "model" / "artifacts").mkdir(parents=True)
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}\n")
    (tmp_path / "model" / "artifacts" / "policy.npz").write_bytes(bytes(range(256)))
    return tmp_path / "model"
