"""A whole family of real services for the training tests, started once; workers are killed and replaced by tests."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from training_fsm.domain.commands import Command, RequestTraining
from training_fsm.domain.request import read_request
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.broker import Broker
from training_fsm.local.mlflow_server import MlflowServer
from training_fsm.local.postgres import PostgresServer
from training_fsm.local.process import ManagedProcess, free_port, start_process, wait_until
from training_fsm.messaging.command_sender import send_command
from training_fsm.service.audit_log import LoggedEvent
from training_fsm.settings import Settings, load_settings
from training_fsm.store.audit_reads import PostgresAuditLog
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.store.migrate import migrate
from training_fsm.worker.child import NAME

LEASE_S = 3.0


@dataclass
class Family:
    """The services around the runs of these tests, and what the tests do to them."""

    settings: Settings
    engine: sa.Engine
    logs: Path
    preprocess: ManagedProcess
    workers: list[ManagedProcess] = field(default_factory=list)
    passing: list[ManagedProcess] = field(default_factory=list)
    """Workers of one run, which end by themselves."""
    sequence: int = 0

    @property
    def log(self) -> PostgresEventLog:
        """The event log that all of them share."""
        return PostgresEventLog(self.engine)

    def start_worker(self, *arguments: str, **environment: str) -> ManagedProcess:
        """One more worker process."""
        self.sequence += 1
        name = f"worker-{self.sequence}"
        command = [
            sys.executable,
            "-m",
            "training_fsm",
            "worker",
            "--home",
            str(self.settings.home),
            *arguments,
        ]
        env = os.environ | {"TRAINING_FSM_WORKER_NAME": name} | environment
        worker = start_process(name, command, log=self.logs / f"{name}.log", env=env)
        (self.passing if "--once" in arguments else self.workers).append(worker)
        return worker

    def ensure_workers(self, number: int) -> None:
        """At least so many live workers; those of earlier tests count, warm as they are."""
        self.workers = [worker for worker in self.workers if worker.alive()]
        for _ in range(number - len(self.workers)):
            self.start_worker()

    def worker_of(self, run: Run) -> ManagedProcess:
        """The process that holds a run."""
        return next(worker for worker in self.workers if run.worker and run.worker.endswith(f"-{worker.pid}"))

    def kill(self, worker: ManagedProcess) -> None:
        """End a worker as a crash would; one that has ended already is no matter."""
        if worker.alive():
            os.kill(worker.pid, signal.SIGKILL)
        worker.popen.wait()

    def send(self, command: Command) -> None:
        """Send a command over Kafka."""
        send_command(self.settings, command)

    def request(self, run_id: str, **changes: object) -> None:
        """Ask for a small run over Kafka; `changes` replace the request's fields."""
        self._ask(run_id, REQUEST | changes)

    def go_on(self, run_id: str, parent: str, **changes: object) -> None:
        """Ask over Kafka to continue a model."""
        self._ask(run_id, {"mode": "continue", "parent": parent, **changes})

    def _ask(self, run_id: str, fields: dict[str, object]) -> None:
        assert self.log.load(run_id) is None, f"another test has a run {run_id}"
        self.send(RequestTraining(run_id=run_id, request=read_request(json.dumps(fields))))

    def registered(self, run_id: str) -> Run:
        """The run once it has ended, which must be as a registered model."""
        run = self.wait(run_id, lambda run: run.ended)
        assert run.state is State.REGISTERED, run.failure
        return run

    def wait(self, run_id: str, reached: Callable[[Run], bool], timeout_s: float = 150) -> Run:
        """The run as soon as it satisfies the condition."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            run = self.log.load(run_id)
            if run is not None and reached(run):
                return run
            time.sleep(0.02)
        state = None if run is None else (run.state, run.failure)
        workers = (*self.workers, *self.passing)
        tails = "\n".join(f"{w.popen.poll()} {w.log} {w.log.read_text()[-1500:]}" for w in workers)
        raise AssertionError(f"run {run_id} stands at {state} after {timeout_s} s\n{tails}")

    def history(self, run_id: str) -> list[LoggedEvent]:
        """The run's events, in order."""
        return list(PostgresAuditLog(self.engine).history(run_id))


def training_child(worker_pid: int) -> int:
    """The process that trains for a worker: a child of its fork server."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            pid, _, rest = status.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            parents[int(pid)] = (name, int(fields.split()[1]))
    servers = {pid for pid, (_, parent) in parents.items() if parent == worker_pid}
    (child,) = [pid for pid, (name, parent) in parents.items() if parent in servers and name == NAME]
    return child


REQUEST: dict[str, object] = {
    "mode": "from_scratch",
    "model": "eurusd-ppo",
    "symbol": "EURUSD",
    "base_timeframe": "1h",
    "timeframe": "4h",
    "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
    "features": {
        "semver": "1.0.0",
        "feature_definitions": [
            {"name": "close_price"},
            {"name": "rsi", "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 14}]},
            {"name": "log_return", "raw_parameter_sets": [{"type": "log_return", "enabled": True, "length": 1}]},
        ],
    },
    "data": {"columns": {"close": "close_price_value"}},
    "agent": {
        "seed": 7,
        "total_timesteps": 8_192,
        "n_envs": 2,
        "net_arch": [16, 16],
        "hyperparameters": {"n_steps": 128, "batch_size": 64, "n_epochs": 5},
    },
    "evaluation": {"gate": [{"metric": "max_drawdown_fraction", "max": 0.99}]},
}


@pytest.fixture(scope="session")
def family(
    postgres_server: PostgresServer, broker: Broker, mlflow_server: MlflowServer, server_folder: Path
) -> Iterator[Family]:
    """Ingest, preprocess and orchestrator as processes, on the session's servers."""
    home, logs = server_folder / "family", server_folder / "family" / "logs"
    logs.mkdir(parents=True)
    feast, port = home / "feast", free_port()
    feast.mkdir()
    url = postgres_server.url
    facts = {
        "database_url": url,
        "bootstrap_servers": broker.bootstrap_servers,
        "topic_prefix": "family.",
        "ingest_url": f"http://127.0.0.1:{port}/api/v1",
        "feast_repo": str(feast),
        "mlflow_tracking_uri": mlflow_server.url,
        "lease_s": LEASE_S,
        "heartbeat_s": 0.5,
        "reconcile_every_s": 5,
        "features_deadline_s": 30,
    }
    (home / "services.json").write_text(json.dumps(facts))
    settings = load_settings(home)
    engine = make_engine(url, application_name="tests")
    migrate(engine)
    standin, brokers = "training_fsm.local.standin", ["--bootstrap-servers", broker.bootstrap_servers]
    preprocess = [sys.executable, "-m", f"{standin}.preprocess", *brokers, "--feast-repo", str(feast)]
    ingest = [sys.executable, "-m", f"{standin}.ingest", *brokers, "--port", str(port)]
    orchestrator = [sys.executable, "-m", "training_fsm", "orchestrator", "--home", str(home)]
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        computing = stack.enter_context(start_process("preprocess", preprocess, log=logs / "preprocess.log"))
        stack.enter_context(start_process("ingest", ingest, log=logs / "ingest.log"))
        family = Family(settings, engine, logs, computing)
        stack.callback(lambda: [worker.stop(grace_s=0.1) for worker in (*family.workers, *family.passing)])
        family.ensure_workers(2)  # they warm up while the others start
        wait_until(lambda: "consuming" in computing.log.read_text(), computing, 60, "preprocess's stand-in")
        serving = stack.enter_context(start_process("orchestrator", orchestrator, log=logs / "orchestrator.log"))
        wait_until(lambda: "relay leads" in serving.log.read_text(), serving, 60, "the orchestrator")
        yield family
    shutil.rmtree(home)
