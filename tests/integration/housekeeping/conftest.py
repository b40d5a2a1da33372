"""A log of runs whose files lie in a real artifact store, and the passes of housekeeping over them."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.domain import events as e
from training_fsm.domain.facts import Artifact
from training_fsm.domain.run import Run
from training_fsm.local.mlflow_server import MlflowServer
from training_fsm.ports import Artifacts, Cause
from training_fsm.service.housekeeping_service import HousekeepingService, MessageLifetime, Pass
from training_fsm.service.retention_service import Retention
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.store.housekeeping import PostgresHousekeeping

Life = Callable[[str], tuple[e.Event, ...]]

CAUSE = Cause("worker-1", "work", "r")
AT_ONCE = Retention(checkpoints=3, data=timedelta(0))


@dataclass
class Topic:
    """A command topic of some lifetime."""

    answer: MessageLifetime | Exception | None = field(default_factory=lambda: MessageLifetime(timedelta(days=7)))

    def lifetime(self) -> MessageLifetime | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass
class House:
    """Postgres, MLflow, and runs with files in both."""

    engine: sa.Engine
    mlflow_url: str
    folder: Path
    """Where the store keeps its files."""
    life: Life
    scratch: Path
    topic: Topic = field(default_factory=Topic)
    inbox: timedelta = timedelta(days=30)
    tracking_runs: set[str] = field(default_factory=set)

    @property
    def log(self) -> PostgresEventLog:
        return PostgresEventLog(self.engine)

    @property
    def store(self) -> MlflowArtifacts:
        return MlflowArtifacts(MlflowConnection(self.mlflow_url))

    def service(self, retention: Retention) -> HousekeepingService:
        return HousekeepingService(self.log, PostgresHousekeeping(self.engine), self.topic, retention, self.inbox)

    def tidy(self, retention: Retention = AT_ONCE, store: Artifacts | None = None) -> Pass:
        """One pass."""
        return self.service(retention).run(store or self.store)

    def trained(self, run_id: str, checkpoints: int, ending: Sequence[e.Event] = ()) -> Run:
        """A run with real files that is in TRAINING, or where `ending` leads from there."""
        tracking_run = self._tracking_run(run_id)
        events = list(self.life(run_id)[:7])
        events[5] = events[5].model_copy(update={"artifact": self._put(tracking_run, "data", run_id, "frozen.parquet")})
        for number in range(1, checkpoints + 1):
            saved = self._put(tracking_run, "checkpoints/0001", run_id, f"checkpoint-{number}.zip")
            curves = self._put(tracking_run, "checkpoints/0001", run_id, f"checkpoint-{number}.curves.json")
            events.append(e.CheckpointSaved(step=number, **saved.model_dump(), curves=curves))
        with self.log.begin() as unit:
            return unit.append(run_id, [*events, *ending], CAUSE)

    def registered(self, run_id: str, checkpoints: int) -> Run:
        """A run whose model is in the registry."""
        finished, evaluated, intended, registered = self.life(run_id)[9:]
        tracking_run = self._tracking_run(run_id)
        report = self._put(tracking_run, "report", run_id, "backtest.json")
        return self.trained(
            run_id, checkpoints, (finished, evaluated.model_copy(update={"report": report}), intended, registered)
        )

    def append(self, run_id: str, *events: e.Event) -> Run:
        with self.log.begin() as unit:
            return unit.append(run_id, events, CAUSE)

    def there(self) -> set[str]:
        """Names of the files in the store, without their digests."""
        roots = [root for run in self.tracking_runs for root in self.folder.glob(f"*/{run}/artifacts")]
        return {path.name.partition("-")[2] for root in roots for path in root.rglob("*") if path.is_file()}

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]

    def released(self) -> list[str]:
        """URIs of everything that the log releases, in order."""
        found = self.rows("SELECT payload FROM events WHERE type = 'artifacts_released' ORDER BY position")
        return [str(artifact["uri"]) for (payload,) in found for artifact in payload["artifacts"]]

    def _tracking_run(self, run_id: str) -> str:
        tracking = MlflowTracking(MlflowConnection(self.mlflow_url), self.scratch.name)
        tracking_run = tracking.open_run(run_id, {}, {})
        self.tracking_runs.add(tracking_run)
        return tracking_run

    def _put(self, tracking_run: str, folder: str, run_id: str, name: str) -> Artifact:
        path = self.scratch / run_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of {run_id}")
        return self.store.put(tracking_run, folder, path)


@pytest.fixture
def house(
    migrated_database_url: str, mlflow_server: MlflowServer, server_folder: Path, life: Life, tmp_path: Path
) -> Iterator[House]:
    """An empty log; the store is the session's, its files are told apart by those of other tests' runs."""
    engine = make_engine(migrated_database_url, application_name="test")
    scratch = tmp_path / f"house-{uuid.uuid4().hex[:8]}"
    yield House(engine, mlflow_server.url, server_folder / "mlflow" / "artifacts", life, scratch)
    engine.dispose()
