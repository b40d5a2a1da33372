"""How fast commands become events, events leave, and a completion moves its run.

    python -m benchmarks.commands    # on the embedded broker, and with KAFKA_HOME=DIR on Apache Kafka beside it

Everything real and on this machine: PostgreSQL (fsync on), the broker, one orchestrator, an ingest that accepts.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import sqlalchemy as sa
from confluent_kafka import Producer

from training_fsm.local.broker import Broker, start_apache_kafka, start_embedded_broker
from training_fsm.local.postgres import start_postgres
from training_fsm.local.process import start_process
from training_fsm.messaging.kafka import make_admin, make_consumer, make_producer
from training_fsm.messaging.preprocessing_listener import PREPROCESS_TOPICS
from training_fsm.messaging.relay import Relay
from training_fsm.messaging.topics import Topics, create_missing
from training_fsm.settings import Settings
from training_fsm.store.engine import make_engine
from training_fsm.store.migrate import migrate
from training_fsm.store.outbox import PostgresOutbox

COMMANDS = 5_000
COMPLETIONS = 50
ORCHESTRATOR = [sys.executable, "-c", "from training_fsm.cli.app import main; main()", "orchestrator"]
REQUEST = {
    "mode": "from_scratch",
    "model": "eurusd-ppo",
    "symbol": "EURUSD",
    "base_timeframe": "1h",
    "timeframe": "4h",
    "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
    "features": {
        "semver": "1.0.0",
        "feature_definitions": [
            {"name": "rsi", "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 14}]}
        ],
    },
    "data": {"columns": {"close": "close_price_value"}},
}


@dataclass(frozen=True)
class Measured:
    """One broker's figures; rates per second, latencies in milliseconds."""

    commands_per_s: float
    events_per_s: float
    completion_median_ms: float
    completion_p95_ms: float


class _Accepting(BaseHTTPRequestHandler):
    """An ingest that says yes."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two wait for each other's acknowledgement

    def do_POST(self) -> None:
        """Accept."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"request_id": body["request_id"], "status": "accepted"}).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _accepting_ingest() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Accepting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _number(engine: sa.Engine, statement: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text(statement)).scalar_one() or 0)


def _is_one(engine: sa.Engine, statement: str) -> bool:
    return _number(engine, statement) == 1


def _until(reached: Callable[[], bool], pause_s: float = 0.02, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not reached within {timeout_s:g} s")
        time.sleep(pause_s)


def _send(producer: Producer, topic: str, run_ids: list[str]) -> None:
    for run_id in run_ids:
        headers: list[tuple[str, str | bytes | None]] = [
            ("ce_id", f"command-{run_id}"),
            ("ce_source", "benchmark"),
            ("ce_type", "request_training"),
        ]
        producer.produce(topic, json.dumps(REQUEST | {"run_id": run_id}), key=run_id, headers=headers)
        producer.poll(0)
    producer.flush(60)


def _measure(broker: Broker, database_url: str, folder: Path) -> Measured:
    engine = make_engine(database_url, application_name="benchmark")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    migrate(engine)
    settings = Settings(database_url=database_url, bootstrap_servers=broker.bootstrap_servers)
    topics = Topics.with_prefix("")
    create_missing(make_admin(settings), topics.all, settings.topic_partitions, 1)
    create_missing(make_admin(settings), PREPROCESS_TOPICS, 1, 1)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 1})
    named = {"DATABASE_URL": database_url, "BOOTSTRAP_SERVERS": broker.bootstrap_servers, "LOG_LEVEL": "warning"}
    with _accepting_ingest() as ingest_url:
        env = {
            **os.environ,
            **{f"TRAINING_FSM_{name}": text for name, text in (named | {"INGEST_URL": ingest_url}).items()},
        }
        with start_process("orchestrator", ORCHESTRATOR, log=folder / "orchestrator.log", env=env):
            _send(producer, topics.requested, ["warm-up"])
            _until(lambda: _number(engine, "SELECT count(*) FROM events") == 3)
            commands_per_s = _commands_per_s(engine, producer, topics)
            latencies_ms = _latencies(engine, producer)
    events_per_s = _events_per_s(engine, settings.model_copy(update={"topic_prefix": "again."}))
    engine.dispose()
    return Measured(
        commands_per_s, events_per_s, statistics.median(latencies_ms), statistics.quantiles(latencies_ms, n=20)[-1]
    )


def _commands_per_s(engine: sa.Engine, producer: Producer, topics: Topics) -> float:
    """From the first command's way to Kafka to the last one's inbox row, while ingest is asked and events leave."""
    began = time.monotonic()
    _send(producer, topics.requested, [f"run-{number}" for number in range(COMMANDS)])
    _until(lambda: _number(engine, "SELECT count(*) FROM commands") > COMMANDS)
    stored_s = time.monotonic() - began
    _until(lambda: _number(engine, "SELECT count(*) FROM events") == 3 * (COMMANDS + 1))  # requested, asked, answered
    return COMMANDS / stored_s


def _events_per_s(engine: sa.Engine, settings: Settings) -> float:
    """The whole log, published by a relay that begins at position 0 and has the machine for itself."""
    topics, group, stop = Topics.with_prefix(settings.topic_prefix), f"{settings.topic_prefix}relay", threading.Event()
    admin = make_admin(settings)
    relay = Relay(
        PostgresOutbox(engine),
        topics,
        lambda: make_producer(settings, group),
        lambda: make_consumer(settings, group),
        admin,
        lambda: create_missing(admin, topics.all, settings.topic_partitions, 1),
    )
    last = _number(engine, "SELECT max(position) FROM events")
    thread = threading.Thread(target=relay.run, args=(stop,))
    began = time.monotonic()
    thread.start()
    moved = f"SELECT relayed_position FROM topics WHERE topic = '{topics.events}'"
    _until(lambda: _relayed(engine, moved) >= last)
    took_s = time.monotonic() - began
    stop.set()
    thread.join()
    return last / took_s


def _relayed(engine: sa.Engine, statement: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text(statement)).scalar_one_or_none() or 0)


def _latencies(engine: sa.Engine, producer: Producer) -> list[float]:
    """Milliseconds from producing a completion to its event in the log, one after the other."""
    found = []
    for number in range(COMPLETIONS):
        run_id = f"run-{number}"
        with engine.connect() as connection:
            request_id = connection.execute(
                sa.text("SELECT request_id FROM run_heads WHERE run_id = :id"), {"id": run_id}
            ).scalar_one()
        body = {"request_id": request_id, "total_features_computed": 6, "success_details": {}}
        sent = time.time()
        producer.produce(PREPROCESS_TOPICS[0], json.dumps(body), key=request_id)
        producer.flush(10)
        moved = f"SELECT count(*) FROM run_heads WHERE run_id = '{run_id}' AND state = 'TRAINING'"
        _until(partial(_is_one, engine, moved), pause_s=0.001)
        found.append((time.time() - sent) * 1000)
    return found


def _table(measured: dict[str, Measured]) -> str:
    found = measured.values()
    rows = {
        "": list(measured),
        "---": ["---" for _ in found],
        "commands stored per s": [f"{one.commands_per_s:,.0f}" for one in found],
        "events relayed per s": [f"{one.events_per_s:,.0f}" for one in found],
        "completion to FeaturesReady, median ms": [f"{one.completion_median_ms:.0f}" for one in found],
        "completion to FeaturesReady, p95 ms": [f"{one.completion_p95_ms:.0f}" for one in found],
    }
    return "\n".join(f"| {' | '.join([words, *cells])} |" for words, cells in rows.items())


def main() -> None:
    """Measure and print a table."""
    kafka_home = os.environ.get("KAFKA_HOME")
    measured = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binaries = Path(os.environ["PG_BIN"]) if "PG_BIN" in os.environ else None
        with start_postgres(folder / "postgres", log=folder / "postgres.log", binaries=binaries) as postgres:
            with start_embedded_broker(log=folder / "tansu.log") as broker:
                measured["embedded broker"] = _measure(broker, postgres.url, folder)
            if kafka_home:
                with start_apache_kafka(Path(kafka_home), folder / "kafka", log=folder / "kafka.log") as broker:
                    measured["Apache Kafka"] = _measure(broker, postgres.url, folder)
    print(_table(measured))


if __name__ == "__main__":
    main()
