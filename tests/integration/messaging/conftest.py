"""A place with a database, topics of its own, a scripted ingest and orchestrators on threads."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

import pytest
import sqlalchemy as sa
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from training_fsm.domain.decide import last_look
from training_fsm.local.broker import Broker
from training_fsm.messaging.kafka import make_admin, make_consumer
from training_fsm.messaging.preprocessing_listener import PREPROCESS_TOPICS
from training_fsm.messaging.topics import Topics, create_missing
from training_fsm.orchestrator import run_orchestrator
from training_fsm.ports import Cause
from training_fsm.settings import Settings
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog

T = TypeVar("T")
WAIT_S = 60
OFFLINE = "completed.preprocess-data.offline"

Answer = tuple[int, dict[str, str]]


class ScriptedIngest:
    """Ingest over HTTP whose answers a test writes, by symbol; without a script it accepts."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[Answer]] = {}
        """What it answers next for a symbol; the last one for ever."""
        self.held: dict[str, threading.Event] = {}
        """Answers for a symbol wait for its event."""
        self.asked: list[dict[str, object]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two wait for each other's acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = owner.answer(body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/api/v1"

    def answer(self, body: dict[str, object]) -> Answer:
        self.asked.append(body)
        if held := self.held.get(str(body["symbol"])):
            held.wait(WAIT_S)
        script = self.scripts.get(str(body["symbol"]), [])
        if script:
            return script.pop(0) if len(script) > 1 else script[0]
        return 202, {"request_id": str(body["request_id"]), "status": "accepted"}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass
class Station:
    """All that a test needs around an orchestrator."""

    settings: Settings
    engine: sa.Engine
    ingest: ScriptedIngest
    producer: Producer
    codes: list[int] = field(default_factory=list)
    """Exit codes of orchestrators that ended."""

    @property
    def topics(self) -> Topics:
        return Topics.with_prefix(self.settings.topic_prefix)

    @property
    def group(self) -> str:
        """The consumer group of its orchestrators."""
        return f"{self.settings.topic_prefix}training-fsm-orchestrator"

    @contextmanager
    def orchestrator(self, **changes: object) -> Iterator[None]:
        """An orchestrator, in this process; it must end well."""
        settings, stop = self.settings.model_copy(update=changes), threading.Event()

        def serve() -> None:
            try:
                code = run_orchestrator(settings, stop)
            except BaseException:
                code = -1
                raise
            finally:
                self.codes.append(code)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        assert set(self.codes) == {0}

    def send(
        self,
        topic: str,
        value: object,
        headers: dict[str, str] | None = None,
        key: str | bytes | None = None,
        partition: int = -1,
    ) -> None:
        """Put a message on a topic; `flush` waits for all of them."""
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        pairs: list[tuple[str, str | bytes | None]] = list((headers or {}).items())
        self.producer.produce(topic, raw, key=key, headers=pairs, partition=partition)
        self.producer.poll(0)

    def command(self, type_: str, data: dict[str, object], command_id: str | None = None) -> str:
        """Send a command as a binary CloudEvent and return its id."""
        command_id = command_id or uuid.uuid4().hex
        headers = {"ce_id": command_id, "ce_source": "test", "ce_type": type_, "ce_specversion": "1.0"}
        self.send(self.topics.requested, data, headers)
        self.flush()
        return command_id

    def look_in_vain(self, run_id: str) -> None:
        """What a worker does once the deadline has passed, and finds nothing in the feature store."""
        self.wait(lambda: self.history(run_id), lambda types: types[-1:] == ["deadline_passed"])
        log = PostgresEventLog(self.engine)
        claimed = log.claim("worker-1", 60, run_id)
        assert claimed is not None
        run, lease = claimed
        lacking = run.plan.request.range
        log.append_fenced(lease, last_look(run, "service", [lacking]), Cause("worker-1", "look", run_id))

    def complete(self, request_id: object, **changes: object) -> None:
        """Tell what preprocess tells when it is done."""
        body = {"request_id": request_id, "total_features_computed": 6, "success_details": {"features_4h": 6}} | changes
        self.send(OFFLINE, body, {"event_type": "preprocessing_completed"}, key=str(request_id))
        self.flush()

    def flush(self) -> None:
        assert self.producer.flush(20) == 0

    def rows(self, statement: str, **values: object) -> list[sa.Row[tuple[object, ...]]]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(statement), values))

    def history(self, run_id: str) -> list[str]:
        """Types of a run's events."""
        found = self.rows("SELECT type FROM events WHERE stream = :stream ORDER BY version", stream=f"run-{run_id}")
        return [str(row.type) for row in found]

    def payloads(self, run_id: str, type_: str) -> list[dict[str, object]]:
        """Payloads of a run's events of a type."""
        found = self.rows(
            "SELECT payload FROM events WHERE stream = :stream AND type = :type ORDER BY version",
            stream=f"run-{run_id}",
            type=type_,
        )
        return [row.payload for row in found]

    def request_id(self, run_id: str) -> object:
        """Of the run's open or last question to ingest."""
        return self.rows("SELECT request_id FROM run_heads WHERE run_id = :id", id=run_id)[0].request_id

    def outcome(self, command_id: str) -> tuple[str, str | None] | None:
        """What became of a command."""
        found = self.rows("SELECT outcome, reason FROM commands WHERE command_id = :id", id=command_id)
        return (found[0].outcome, found[0].reason) if found else None

    def wait(self, look: Callable[[], T], good: Callable[[T], bool] = bool, timeout_s: float = WAIT_S) -> T:
        """What `look` gives once it is good; else the test fails with what was seen last."""
        deadline = time.monotonic() + timeout_s
        while not good(seen := look()):
            if time.monotonic() > deadline or any(self.codes):
                pytest.fail(f"waited {timeout_s:g} s, last seen: {seen!r}; exit codes {self.codes}")
            time.sleep(0.03)
        return seen

    def ends_with(self, run_id: str, type_: str) -> list[str]:
        """Wait for a run's history to end so."""
        return self.wait(lambda: self.history(run_id), lambda types: bool(types) and types[-1] == type_)

    @contextmanager
    def reader(self, *topics: str, isolation: str = "read_committed") -> Iterator["Reader"]:
        """Reads topics from their beginnings."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings.bootstrap_servers,
                "group.id": f"reader-{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": isolation,
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )
        places = [
            TopicPartition(topic, partition, OFFSET_BEGINNING)
            for topic in topics
            for partition in range(self.settings.topic_partitions)
        ]
        consumer.assign(places)
        try:
            yield Reader(consumer)
        finally:
            consumer.close()


@dataclass
class Reader:
    """The messages of some topics as they come."""

    consumer: Consumer
    messages: list[Message] = field(default_factory=list)

    def until(self, enough: Callable[[list[Message]], bool], timeout_s: float = WAIT_S) -> list[Message]:
        """All messages so far, once they are enough."""
        deadline = time.monotonic() + timeout_s
        while not enough(self.messages):
            if time.monotonic() > deadline:
                pytest.fail(f"{len(self.messages)} messages within {timeout_s:g} s are not enough")
            self.more(0.1)
        return self.messages

    def more(self, timeout_s: float) -> list[Message]:
        """All messages so far, after a wait for more."""
        for message in self.consumer.consume(1000, timeout=timeout_s):
            assert message.error() is None, message.error()
            self.messages.append(message)
        return self.messages


def header(message: Message, name: str) -> str | None:
    """A header's text."""
    content = dict(message.headers() or []).get(name)
    return content.decode() if isinstance(content, bytes) else content


@pytest.fixture
def header_of() -> Callable[[Message, str], str | None]:
    """Reads a header of a message."""
    return header


def _skip_the_past(station: Station) -> None:
    """The neighbours' topics have no prefix: what other tests left there is not for this orchestrator."""
    consumer = make_consumer(station.settings, station.group)
    try:
        for topic in PREPROCESS_TOPICS:
            for partition in consumer.list_topics(topic, timeout=WAIT_S).topics[topic].partitions:
                _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=WAIT_S)
                consumer.commit(offsets=[TopicPartition(topic, partition, end)], asynchronous=False)
    finally:
        consumer.close()


Database = Callable[[], AbstractContextManager[str]]


@contextmanager
def make_station(broker: Broker, migrated_database: Database) -> Iterator[Station]:
    """A database, a prefix and an ingest."""
    with migrated_database() as url, ExitStack() as cleanup:
        engine = make_engine(url, application_name="test")
        cleanup.callback(engine.dispose)
        ingest = ScriptedIngest()
        cleanup.callback(ingest.close)
        settings = Settings(
            database_url=url,
            bootstrap_servers=broker.bootstrap_servers,
            topic_prefix=f"t{uuid.uuid4().hex[:12]}.",
            topic_partitions=3,
            ingest_url=ingest.url,
            backoff_first_s=0.2,
            backoff_max_s=1,
            kafka_options={"topic.metadata.refresh.interval.ms": "500"},
        )
        create_missing(make_admin(settings), PREPROCESS_TOPICS, partitions=1, replication=1)
        create_missing(make_admin(settings), Topics.with_prefix(settings.topic_prefix).all, 3, 1)
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 0})
        station = Station(settings, engine, ingest, producer)
        _skip_the_past(station)
        yield station


@pytest.fixture
def station(broker: Broker, migrated_database: Database) -> Iterator[Station]:
    """A place of this test's own; nothing runs there yet."""
    with make_station(broker, migrated_database) as made:
        yield made


@pytest.fixture(scope="module")
def served(broker: Broker, migrated_database: Database) -> Iterator[Station]:
    """A place where an orchestrator runs for all tests of the module."""
    with make_station(broker, migrated_database) as made, made.orchestrator():
        yield made


@pytest.fixture
def kafka_station(apache_kafka: Broker, migrated_database: Database) -> Iterator[Station]:
    """A place of this test's own on Apache Kafka; skips without it."""
    with make_station(apache_kafka, migrated_database) as made:
        yield made
