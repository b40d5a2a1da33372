"""The broker of docker-compose.yml, started by hand with the properties that its image would make of the variables."""

import os
from pathlib import Path

import yaml
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from training_fsm.local.process import free_port, run_to_end, start_process, wait_until
from training_fsm.messaging.topics import create_missing

ROOT = Path(__file__).parents[3]


def _properties(environment: dict[str, str]) -> dict[str, str]:
    """As the image names them: KAFKA_LOG_DIRS is log.dirs."""
    return {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in environment.items()}


def test_broker_of_the_compose_file_serves_transactions(kafka_home: Path, tmp_path: Path) -> None:
    """One node is enough for topics, transactions and the relay's producer, on the listener for this machine."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    properties = _properties(compose["services"]["kafka"]["environment"])
    inner, controller, host = free_port(), free_port(), free_port()
    swaps = {
        "kafka:9092": f"127.0.0.1:{inner}",
        "kafka:9093": f"127.0.0.1:{controller}",
        "//:9092": f"//127.0.0.1:{inner}",
        "//:9093": f"//127.0.0.1:{controller}",
        "//:19092": f"//127.0.0.1:{host}",
        "localhost:${KAFKA_PORT:-19092}": f"127.0.0.1:{host}",
        "/var/lib/kafka/data": str(tmp_path / "records"),
    }
    for old, new in swaps.items():
        properties = {name: value.replace(old, new) for name, value in properties.items()}
    file, log = tmp_path / "server.properties", tmp_path / "kafka.log"
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    environment = os.environ | {"LOG_DIR": str(tmp_path / "logs"), "KAFKA_HEAP_OPTS": "-Xms128m -Xmx512m"}
    storage = [str(kafka_home / "bin/kafka-storage.sh"), "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c", str(file)]
    run_to_end(start_process("format", storage, log=log, env=environment), 60)
    server = [str(kafka_home / "bin/kafka-server-start.sh"), str(file)]
    with start_process("kafka", server, log=log, env=environment, cwd=tmp_path) as broker:
        wait_until(lambda: "Kafka Server started" in log.read_text(), broker, 60, "Kafka")
        bootstrap = {"bootstrap.servers": f"127.0.0.1:{host}", "log_level": 0}
        create_missing(AdminClient(bootstrap), ("events.train-model",), 6, 1)
        producer = Producer({**bootstrap, "transactional.id": "relay"})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce("events.train-model", b"{}")
        producer.commit_transaction(30)
