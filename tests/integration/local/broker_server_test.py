"""The embedded broker forgets, Apache Kafka remembers; neither can be reached from outside."""

import os
import signal
import socket
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from training_fsm.local.broker import Broker, start_apache_kafka, start_embedded_broker
from training_fsm.local.process import StartFailed

_TOPIC = "kept"


def _send(broker: Broker, value: bytes) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    if _TOPIC not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic(_TOPIC, 1, 1)])[_TOPIC].result(timeout=20)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "enable.idempotence": True})
    producer.produce(_TOPIC, value)
    assert producer.flush(20) == 0


def _received(broker: Broker, count: int) -> list[bytes | None]:
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "test", "auto.offset.reset": "earliest"}
        | {"session.timeout.ms": 6000}
    )
    consumer.subscribe([_TOPIC])
    try:
        return [message.value() for message in consumer.consume(count, timeout=40)]
    finally:
        consumer.close()


def _reachable(address: str, broker: Broker) -> bool:
    port = int(broker.bootstrap_servers.rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def test_the_embedded_broker_carries_a_message_and_stays_on_loopback(tmp_path: Path) -> None:
    """A message comes through; another address than 127.0.0.1 is not served."""
    with start_embedded_broker(log=tmp_path / "log") as broker:
        _send(broker, b"one")
        assert _received(broker, 1) == [b"one"]
        assert _reachable("127.0.0.1", broker)
        assert not _reachable("127.0.0.2", broker)
    assert not broker.process.alive()


def test_a_taken_port_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the port."""
    monkeypatch.setattr("training_fsm.local.process._PREDECESSOR_ENDS_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartFailed, match=f"tansu: port {port} "):
            start_embedded_broker(log=tmp_path / "log", port=port)


def test_apache_kafka_keeps_its_data_over_a_restart_and_a_kill(tmp_path: Path, kafka_home: Path) -> None:
    """Formatted once; what was acknowledged is there after a stop and after a SIGKILL, on whatever port."""

    def start() -> Broker:
        return start_apache_kafka(kafka_home, tmp_path / "kafka", log=tmp_path / "log")

    with start() as broker:
        _send(broker, b"one")
        assert not _reachable("127.0.0.2", broker)
    with start() as broker:
        _send(broker, b"two")
        os.kill(broker.process.pid, signal.SIGKILL)
        with start() as second:
            _send(second, b"three")
            assert _received(second, 3) == [b"one", b"two", b"three"]


def test_a_folder_that_is_no_distribution_is_named(tmp_path: Path) -> None:
    """A wrong KAFKA_HOME reads as such."""
    with pytest.raises(StartFailed, match=r"is no Kafka distribution: it has no bin/kafka-storage\.sh"):
        start_apache_kafka(tmp_path, tmp_path / "kafka", log=tmp_path / "log")


def test_a_second_kafka_on_the_folder_is_refused(
    tmp_path: Path, kafka_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of the running broker is respected."""
    monkeypatch.setattr("training_fsm.local.broker._PREDECESSOR_ENDS_S", 0.1)
    with start_apache_kafka(kafka_home, tmp_path / "kafka", log=tmp_path / "log") as broker:
        with pytest.raises(StartFailed, match=r"a Kafka broker already runs on .*/kafka/records"):
            start_apache_kafka(kafka_home, tmp_path / "kafka", log=tmp_path / "log")
        assert broker.process.alive()
