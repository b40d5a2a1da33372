"""Everything on this machine: PostgreSQL, a broker, MLflow, Feast, the stand-ins, the orchestrator and workers.

What is started dies with this process, also when that is killed; data stays in the home folder.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM

import sqlalchemy as sa
from confluent_kafka.admin import AdminClient

from training_fsm.local.broker import start_apache_kafka, start_embedded_broker
from training_fsm.local.home_lock import only_one_up
from training_fsm.local.mlflow_server import START_TIMEOUT_S, launch_mlflow_server
from training_fsm.local.postgres import start_postgres
from training_fsm.local.process import ManagedProcess, answers_http, claim_port, start_process, wait_until
from training_fsm.local.services_file import Services, remove_services, write_services
from training_fsm.local.standin.kafka import create_missing_topics
from training_fsm.local.standin.wire import TOPICS
from training_fsm.local.supervised import Supervised
from training_fsm.messaging.topics import Topics
from training_fsm.settings import Settings, load_settings
from training_fsm.store.engine import make_engine
from training_fsm.store.migrate import migrate
from training_fsm.store.unit_of_work import WORK_CHANNEL

STOP_WORKER_S = 30.0
"""Long enough for a last checkpoint to be stored."""
EXAMPLES = Path(__file__).with_name("examples")
"""Requests that the shipped prices can serve."""
_WORKERS_READY = sa.text(
    "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = :listens)"
    " + (SELECT count(*) FROM run_heads WHERE worker = ANY(:workers) AND lease_until > clock_timestamp())"
)


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on loopback; None takes a free one."""

    postgres: int | None = None
    kafka: int | None = None
    mlflow: int | None = None
    ingest: int | None = None


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What runs, and where."""

    home: Path
    kafka_home: Path | None = None
    """An unpacked Apache Kafka; None takes the embedded broker, which forgets its topics when it stops."""
    workers: int = 1
    ports: Ports = Ports()
    lease_s: float | None = None
    """None: as the settings have it."""


class LocalStack:
    """The services: `start`, `tend` again and again, `stop`. For the main thread only."""

    def __init__(self, options: StackOptions, say: Callable[[str], None]) -> None:
        self._options = options
        self._home = options.home.absolute()
        self._say = say
        self._lock = ExitStack()
        self._layers: list[list[Supervised]] = []
        """Who is started first, and stopped last, comes first."""

    def start(self) -> None:
        """Start everything and wait until it is ready.

        Raises StartFailed where one does not come up, with the end of its log, or where another `up` holds the home.
        """
        self._lock.enter_context(only_one_up(self._home))
        try:
            remove_services(self._home)  # a killed predecessor's would be taken for settings
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def services(self) -> Services:
        """Where everything is now."""
        running = {each.name: each.process.pid for layer in self._layers for each in layer if each.process is not None}
        return self._found.model_copy(update={"processes": {"up": os.getpid(), **running}})

    @property
    def settings(self) -> Settings:
        """The settings with which other commands reach the services."""
        return Settings(home=self._home, **self._found.model_dump(exclude={"processes"}))

    def tend(self) -> None:
        """Look after every service once, without waiting. Raises StartFailed where one cannot be kept running."""
        anew = [each for layer in self._layers for each in layer if each.tend(self._say)]
        if self._broker in anew and self._options.kafka_home is None:
            self._say("the embedded broker has forgotten its topics; every event goes out again")
        if anew:
            write_services(self._home, self.services)

    def stop(self) -> None:
        """Stop everything in order, whoever depends on others first."""
        for layer in reversed(self._layers):
            with ThreadPoolExecutor(len(layer)) as pool:
                list(pool.map(Supervised.stop, layer))
        remove_services(self._home)
        self._lock.close()

    def _start(self) -> None:
        base = load_settings(self._home)
        ports = self._options.ports
        self._logs = self._home / "logs"
        self._worker_name = base.worker_name
        self._mlflow_port = claim_port(ports.mlflow, "MLflow")
        self._postgres_port = claim_port(ports.postgres, "PostgreSQL")
        self._kafka_port = claim_port(ports.kafka, "Kafka")
        self._ingest_port = claim_port(ports.ingest, "ingest")
        self._found = Services(
            database_url="",
            bootstrap_servers=f"127.0.0.1:{self._kafka_port}",
            kafka_options={},
            topic_prefix=base.topic_prefix,
            ingest_url=f"http://127.0.0.1:{self._ingest_port}/api/v1",
            ingest_path="/preprocessing/requests",
            feast_repo=self._home / "feast",
            mlflow_tracking_uri=f"http://127.0.0.1:{self._mlflow_port}",
            lease_s=self._options.lease_s or base.lease_s,
            processes={},
        )
        mlflow = Supervised("mlflow", self._launch_mlflow, lambda _: answers_http(self._mlflow_port, "/health"))
        self._broker = Supervised("kafka", self._launch_broker, grace_s=20)
        postgres = Supervised("postgres", self._launch_postgres, grace_s=30)
        ingest = Supervised("ingest", self._launch_ingest, lambda _: answers_http(self._ingest_port, "/health"))
        preprocess = Supervised("preprocess", self._launch_preprocess, _consumes)
        orchestrator = Supervised("orchestrator", partial(self._launch_role, "orchestrator"), self._has_topics)
        self._workers = [
            Supervised(name, partial(self._launch_role, "worker", name), self._workers_ready, STOP_WORKER_S)
            for name in (f"worker-{number}" for number in range(1, self._options.workers + 1))
        ]
        self._kafka_clients = (ingest, preprocess, orchestrator)
        # MLflow and preprocess take seconds to import what they need: meanwhile the others start.
        self._layers = [[mlflow, self._broker, postgres], [ingest, preprocess, orchestrator]]
        for each in (mlflow, self._broker, preprocess, ingest, postgres):
            each.start()
        self._admin = AdminClient({"bootstrap.servers": self._found.bootstrap_servers, "log_level": 0})
        self._engine = make_engine(self._found.database_url, application_name="training-fsm-up")
        migrate(self._engine)
        orchestrator.start()
        self._wait(preprocess)  # it makes the Feast repository that workers open first of all
        if self._workers:
            self._layers.append(self._workers)
        for each in self._workers:
            each.start()
        for each in (mlflow, ingest, orchestrator, *self._workers):
            self._wait(each)
        self._engine.dispose()
        write_services(self._home, self.services)

    def _wait(self, service: Supervised) -> None:
        process = service.process
        assert process is not None, "started before"
        wait_until(lambda: service.ready(process), process, START_TIMEOUT_S, service.name)

    def _launch_mlflow(self) -> ManagedProcess:
        return launch_mlflow_server(self._home / "mlflow", log=self._log("mlflow"), port=self._mlflow_port).process

    def _launch_broker(self) -> ManagedProcess:
        kafka_home = self._options.kafka_home
        log, port = self._log("kafka"), self._kafka_port
        if kafka_home is None:
            # A client of the one before would wait in groups that this one has never heard of.
            for each in self._kafka_clients:
                each.stop()
            broker = start_embedded_broker(log=log, port=port)
        else:
            broker = start_apache_kafka(kafka_home, self._home / "kafka", log=log, port=port)
        # Before anybody subscribes: a topic made later is found seconds later.
        create_missing_topics(broker.bootstrap_servers, TOPICS)
        return broker.process

    def _launch_postgres(self) -> ManagedProcess:
        server = start_postgres(self._home / "postgres", log=self._log("postgres"), port=self._postgres_port)
        self._found = self._found.model_copy(update={"database_url": server.url})
        return server.process

    def _launch_ingest(self) -> ManagedProcess:
        return self._launch_standin("ingest", "--port", str(self._ingest_port))

    def _launch_preprocess(self) -> ManagedProcess:
        return self._launch_standin("preprocess", "--feast-repo", str(self._found.feast_repo))

    def _launch_standin(self, name: str, *arguments: str) -> ManagedProcess:
        module = f"training_fsm.local.standin.{name}"
        argv = [sys.executable, "-m", module, "--bootstrap-servers", self._found.bootstrap_servers, *arguments]
        return start_process(name, argv, log=self._log(name))

    def _launch_role(self, role: str, name: str | None = None) -> ManagedProcess:
        environment = {**os.environ, **self._found.environment()}
        environment.pop("TRAINING_FSM_FEAST_REGISTRY", None)  # we have a feast_repo
        return start_process(
            name or role,
            [sys.executable, "-m", "training_fsm", role, "--home", str(self._home)],
            log=self._log(name or role),
            env=environment,
            # A worker without its services could not store anything more, and the log knows how to go on.
            death_signal=SIGKILL if role == "worker" else SIGTERM,
        )

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _has_topics(self, _: ManagedProcess) -> bool:
        """Whether commands can be sent: the orchestrator has made the topics."""
        wanted = Topics.with_prefix(self._found.topic_prefix).all
        return self._admin.list_topics(timeout=5).topics.keys() >= set(wanted)

    def _workers_ready(self, _: ManagedProcess) -> bool:
        """Whether every worker listens for runs or has one: it does once its training child has imported everything."""
        pids = [worker.process.pid for worker in self._workers if worker.process is not None]
        names = [f"{self._worker_name}-{pid}" for pid in pids]
        with self._engine.connect() as connection:
            found = connection.execute(_WORKERS_READY, {"listens": f"LISTEN {WORK_CHANNEL}", "workers": names})
            return int(found.scalar_one()) >= len(self._workers)


def _consumes(preprocess: ManagedProcess) -> bool:
    return "consuming topic=" in preprocess.last_lines(50)
