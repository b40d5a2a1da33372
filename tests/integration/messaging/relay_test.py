"""The way out: everything that was stored, in order, once."""

import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from confluent_kafka import Message, Producer, TopicPartition

from training_fsm.domain import events as e
from training_fsm.local.process import start_process
from training_fsm.messaging import relay as relay_module
from training_fsm.messaging.kafka import make_admin, make_consumer, make_producer
from training_fsm.messaging.relay import Relay, RelayLeadsError
from training_fsm.messaging.topics import create_missing, topic_ids
from training_fsm.ports import Cause
from training_fsm.store.engine import RELAY_LEADER_LOCK, make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.store.outbox import PostgresOutbox

if TYPE_CHECKING:
    from conftest import Station

Life = Callable[[str], tuple[e.Event, ...]]
HeaderOf = Callable[[Message, str], str | None]
CAUSE = Cause("test", "m", "c")
ORCHESTRATOR = [sys.executable, "-c", "from training_fsm.cli.app import main; main()", "orchestrator"]


def _relay(station: "Station", engine: sa.Engine) -> Relay:
    settings, group = station.settings, _group(station)
    return Relay(
        PostgresOutbox(engine),
        station.topics,
        lambda: make_producer(settings, group),
        lambda: make_consumer(settings, group),
        make_admin(settings),
        lambda: create_missing(make_admin(settings), station.topics.all, settings.topic_partitions, 1),
    )


@contextmanager
def _relaying(station: "Station") -> Iterator[Relay]:
    """A relay on a thread, with connections of its own."""
    stop = threading.Event()
    engine = make_engine(station.settings.database_url, application_name="relay")
    relay = _relay(station, engine)
    thread = threading.Thread(target=relay.run, args=(stop,))
    thread.start()
    try:
        yield relay
    finally:
        stop.set()
        thread.join()
        engine.dispose()


def _group(station: "Station") -> str:
    return f"{station.settings.topic_prefix}training-fsm-relay"


def _append(station: "Station", life: Life, *run_ids: str) -> None:
    with PostgresEventLog(station.engine).begin() as unit:
        for run_id in run_ids:
            unit.append(run_id, life(run_id)[:2], CAUSE)


def _stored(station: "Station") -> list[str]:
    """Ids of the stored events, by position."""
    rows = station.rows("SELECT stream, version FROM events ORDER BY position")
    return [f"{row.stream}/{row.version}" for row in rows]


def _published(station: "Station", header_of: HeaderOf, expected: int, timeout_s: float = 60) -> list[Message]:
    """The messages of the events topic once so many different ones are there, and whatever comes after them."""
    with station.reader(station.topics.events) as reader:
        reader.until(lambda found: len({header_of(message, "ce_id") for message in found}) >= expected, timeout_s)
        return list(reader.more(0.7))


def _assert_in_order(messages: list[Message], header_of: HeaderOf) -> None:
    """Within each partition positions only rise."""
    places = defaultdict(list)
    for message in messages:
        places[message.partition()].append(int(header_of(message, "ce_position") or ""))
    for positions in places.values():
        assert positions == sorted(set(positions))


def _cursor(station: "Station") -> int:
    """Where Kafka says that the relay stands."""
    consumer = make_consumer(station.settings, _group(station))
    try:
        return consumer.committed([TopicPartition(station.topics.events, 0)], timeout=20)[0].offset
    finally:
        consumer.close()


def test_what_many_appenders_store_at_once_is_published_whole_and_in_order(
    station: "Station", life: Life, header_of: HeaderOf
) -> None:
    """Eight threads append while the relay runs: positions become visible out of order, and none is lost."""
    log = PostgresEventLog(station.engine)

    def append(worker: int) -> None:
        for number in range(40):
            with log.begin() as unit:
                unit.append(f"r-{worker}-{number}", life("r")[:2], CAUSE)
                if number % 7 == 0:
                    time.sleep(0.002)

    with _relaying(station):
        threads = [threading.Thread(target=append, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        messages = _published(station, header_of, 640)
    ids = [header_of(message, "ce_id") for message in messages]
    assert sorted(ids) == sorted(_stored(station))
    _assert_in_order(messages, header_of)


def test_one_relay_leads_and_another_takes_over(station: "Station", life: Life, header_of: HeaderOf) -> None:
    """The second waits while the first leads, and goes on where it stood."""
    with _relaying(station) as first:
        _append(station, life, "a")
        first.wake.set()
        _published(station, header_of, 2)
        with _relaying(station):
            leaders = (
                "FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = :lock "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            assert len(station.rows(f"SELECT 1 {leaders}", lock=RELAY_LEADER_LOCK)) == 1
            station.rows(f"SELECT pg_terminate_backend(pid) {leaders}", lock=RELAY_LEADER_LOCK)
            _append(station, life, "b")
            messages = _published(station, header_of, 4)
    assert sorted(header_of(message, "ce_id") or "" for message in messages) == sorted(_stored(station))


def test_a_cursor_that_kafka_forgot_is_taken_from_postgres(
    station: "Station", life: Life, header_of: HeaderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another group has no offsets at all, as one that Kafka forgot: nothing is published twice."""
    with _relaying(station):
        _append(station, life, "a", "b")
        _published(station, header_of, 4)
        copy = "SELECT relayed_position FROM topics WHERE topic = :topic"
        station.wait(lambda: station.rows(copy, topic=station.topics.events)[0][0], lambda position: position == 4)
    monkeypatch.setattr(sys.modules[__name__], "_group", lambda station: f"{station.settings.topic_prefix}forgotten")
    assert _cursor(station) < 0
    with _relaying(station):
        _append(station, life, "c")
        messages = _published(station, header_of, 6)
    assert max(Counter(header_of(message, "ce_id") for message in messages).values()) == 1
    assert _cursor(station) == 6


def test_a_relay_that_is_wound_back_publishes_again_from_there(
    station: "Station", life: Life, header_of: HeaderOf
) -> None:
    """The same ids once more; not while another one leads, and never past what has gone out."""
    relay = _relay(station, station.engine)
    with PostgresEventLog(station.engine).begin() as unit:
        unit.append("r", life("r")[:4], CAUSE)
    with station.reader(station.topics.events) as reader:
        with _relaying(station):
            reader.until(lambda messages: len(messages) == 4)
            with pytest.raises(RelayLeadsError, match="stop all of them first"):
                relay.rewind(0)
        with pytest.raises(ValueError, match="expected at most 5, the first position that has not gone out yet"):
            relay.rewind(6)
        relay.rewind(3)
        with _relaying(station):
            messages = reader.until(lambda messages: len(messages) == 6)
    ids = [header_of(message, "ce_id") for message in messages]
    assert ids == [f"run-r/{version}" for version in (1, 2, 3, 4, 3, 4)]


def test_another_topic_than_the_one_we_knew_gets_the_log_from_its_beginning(
    station: "Station", life: Life, header_of: HeaderOf
) -> None:
    """A topic that was deleted and made anew has another id: what it lost is published again."""
    with _relaying(station):
        _append(station, life, "a")
        _published(station, header_of, 2)
    with station.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE topics SET topic_id = 'of the topic before' WHERE topic = :topic"),
            {"topic": station.topics.events},
        )
    with _relaying(station):
        station.wait(lambda: _counted(station, header_of), lambda counts: counts == {"run-a/1": 2, "run-a/2": 2})


def test_a_topic_that_is_deleted_under_a_leading_relay_is_made_again_with_all_of_the_log(
    kafka_station: "Station", life: Life, header_of: HeaderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leads notices, and needs no restart."""
    station = kafka_station  # the embedded broker keeps nothing, so deletion is no case there
    monkeypatch.setattr(relay_module, "TOPIC_LOOK_S", 0.3)
    admin, topic = make_admin(station.settings), station.topics.events
    with _relaying(station):
        _append(station, life, "a")
        _published(station, header_of, 2)
        old = topic_ids(admin, (topic,))[topic]
        admin.delete_topics([topic])[topic].result(timeout=20)
        station.wait(lambda: topic_ids(admin, (topic,)).get(topic, old), lambda now: now != old)
        _append(station, life, "b")
        station.wait(lambda: set(_counted(station, header_of)), lambda ids: ids == set(_stored(station)))


def test_a_batch_is_bounded_in_bytes(station: "Station", life: Life) -> None:
    """Large events go out a few at once; one that is larger than the bound goes alone."""
    _append(station, life, "a", "b")
    outbox = PostgresOutbox(station.engine)
    assert [event.position for event in outbox.read(0, 4, 500, 8_000_000)] == [1, 2, 3, 4]
    first, second = (len(event.payload.encode()) for event in outbox.read(0, 2, 500, 8_000_000))
    assert [event.position for event in outbox.read(0, 4, 500, first + second)] == [1, 2]
    assert [event.position for event in outbox.read(2, 4, 500, 1)] == [3]
    assert [event.position for event in outbox.read(0, 4, 3, 8_000_000)] == [1, 2, 3]


def _counted(station: "Station", header_of: HeaderOf) -> Counter[str | None]:
    return Counter(header_of(message, "ce_id") for message in _published(station, header_of, 0))


def _lose_the_last_run(station: "Station") -> None:
    """The log of the runs a and b, as a backup would have it from before b."""
    with station.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE events DISABLE TRIGGER ALL"))
        connection.execute(sa.text("DELETE FROM events WHERE stream = 'run-b'"))
        connection.execute(sa.text("ALTER TABLE events ENABLE TRIGGER ALL"))
        connection.execute(sa.text("DELETE FROM run_heads WHERE run_id = 'b'"))
        connection.execute(sa.text("SELECT setval('events_position_seq', 2)"))


def test_a_log_from_before_what_was_published_goes_on_above_it(
    station: "Station", life: Life, header_of: HeaderOf
) -> None:
    """After a restore from a backup the cursor stands higher than the log: new events get positions above it."""
    with _relaying(station):
        _append(station, life, "a", "b")
        _published(station, header_of, 4)
        station.wait(lambda: _cursor(station), lambda cursor: cursor == 4)
    _lose_the_last_run(station)
    with _relaying(station):
        restored = "SELECT position, payload FROM events WHERE type = 'log_restored'"
        found = station.wait(lambda: station.rows(restored))
        assert [tuple(row) for row in found] == [(5, {"last_position": 2, "published_position": 4})]
        _append(station, life, "c")
        messages = _published(station, header_of, 7)
    with _relaying(station) as another:
        another.wake.set()
        assert len(_published(station, header_of, 7)) == 7
    assert [row.position for row in station.rows("SELECT position FROM events ORDER BY 1")] == [1, 2, 5, 6, 7]
    assert {message.key() for message in messages} == {b"a", b"b", b"c", b"log-restored"}


def test_a_relay_that_was_wound_back_still_knows_what_had_gone_out(
    kafka_station: "Station", life: Life, header_of: HeaderOf
) -> None:
    """A restore after that, and before all went out again, is noticed: Kafka keeps the highest beside the cursor."""
    station = kafka_station  # the embedded broker forgets what stands beside an offset
    with _relaying(station):
        _append(station, life, "a", "b")
        _published(station, header_of, 4)
    _relay(station, station.engine).rewind(1)
    assert _cursor(station) == 0
    _lose_the_last_run(station)
    with _relaying(station):
        messages = _published(station, header_of, 5)
    ids = [header_of(message, "ce_id") for message in messages]
    assert Counter(ids) == {"run-a/1": 2, "run-a/2": 2, "run-b/1": 1, "run-b/2": 1, "log-restored/1~5": 1}


def test_a_relay_notices_that_another_server_took_over(station: "Station", life: Life, header_of: HeaderOf) -> None:
    """It begins again, says so, and what waited goes out."""
    with _relaying(station), pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_module, "TOPIC_LOOK_S", 0.3)
        _append(station, life, "a")
        _published(station, header_of, 2)
        with station.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM log_places"))
        station.wait(lambda: _stored(station)[2:], lambda last: last == ["log-restored/1"])
        _append(station, life, "b")
        messages = _published(station, header_of, 5)
    ids = [header_of(message, "ce_id") or "" for message in messages]
    assert sorted(ids) == ["log-restored/1~3", "run-a/1", "run-a/2", "run-b/1~3", "run-b/2~3"]


def test_a_transaction_that_the_broker_refuses_is_begun_again(
    station: "Station", life: Life, header_of: HeaderOf
) -> None:
    """Fenced by another producer of our name, the relay starts anew and loses nothing."""
    with _relaying(station):
        _append(station, life, "a")
        _published(station, header_of, 2)
        rival: Producer = make_producer(station.settings, _group(station))
        rival.init_transactions(20)
        _append(station, life, "b")
        messages = _published(station, header_of, 4)
    assert sorted({header_of(message, "ce_id") or "" for message in messages}) == sorted(_stored(station))


def test_the_cursor_is_committed_again_before_kafka_forgets_it(
    station: "Station", life: Life, header_of: HeaderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while there is nothing to publish; no message comes of it."""
    monkeypatch.setattr(relay_module, "RECOMMIT_S", 0.2)
    commits: list[int] = []
    transact = Relay._transact
    monkeypatch.setattr(Relay, "_transact", lambda self, *a: (commits.append(len(a[2])), transact(self, *a))[1])
    with _relaying(station):
        _append(station, life, "a")
        station.wait(lambda: commits.count(0), lambda empty: empty >= 2)
        assert len(_published(station, header_of, 2)) == 2
    assert _cursor(station) == 2


SLOWLY = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END';
CREATE TRIGGER slowly BEFORE UPDATE ON topics FOR EACH ROW EXECUTE FUNCTION slowly();
"""
"""All 2,000 would be out before a reader on a busy machine has seen the first: a pause after each batch."""


def _killed_and_followed(station: "Station", life: Life, header_of: HeaderOf, tmp_path: Path) -> list[Message]:
    """2,000 events, an orchestrator killed with SIGKILL while it publishes them, and another one."""
    log = PostgresEventLog(station.engine)
    for batch in range(10):
        with log.begin() as unit:
            for number in range(100):
                unit.append(f"r-{batch}-{number}", life("r")[:2], CAUSE)
    with station.engine.begin() as connection:  # nothing is due: the log gets no more events than these
        connection.execute(sa.text("UPDATE run_heads SET due_at = clock_timestamp() + interval '1 day'"))
        connection.execute(sa.text(SLOWLY))
    names = ("database_url", "bootstrap_servers", "topic_prefix", "ingest_url")
    env = {**os.environ, **{f"TRAINING_FSM_{name.upper()}": getattr(station.settings, name) for name in names}}
    env["TRAINING_FSM_TOPIC_PARTITIONS"] = str(station.settings.topic_partitions)
    with (
        start_process("orchestrator", ORCHESTRATOR, log=tmp_path / "first.log", env=env) as first,
        station.reader(station.topics.events, isolation="read_uncommitted") as reader,
    ):
        reader.until(lambda found: len(found) > 700)
        os.kill(first.pid, signal.SIGKILL)
    assert first.popen.returncode == -signal.SIGKILL
    copy = station.rows("SELECT relayed_position FROM topics WHERE topic = :topic", topic=station.topics.events)
    assert copy[0].relayed_position < 2000, "killed too late to show anything"
    with station.engine.begin() as connection:
        connection.execute(sa.text("DROP FUNCTION slowly CASCADE"))
    with start_process("orchestrator", ORCHESTRATOR, log=tmp_path / "second.log", env=env):
        return _published(station, header_of, 2000, timeout_s=90)


def test_a_killed_relay_is_followed_by_one_that_publishes_each_event_once(
    kafka_station: "Station", life: Life, header_of: HeaderOf, tmp_path: Path
) -> None:
    """On Apache Kafka, for who reads committed: every event exactly once, in order."""
    messages = _killed_and_followed(kafka_station, life, header_of, tmp_path)
    assert sorted(header_of(message, "ce_id") or "" for message in messages) == sorted(_stored(kafka_station))
    _assert_in_order(messages, header_of)


def test_a_killed_relay_is_followed_by_one_that_leaves_nothing_out(
    station: "Station", life: Life, header_of: HeaderOf, tmp_path: Path
) -> None:
    """On any broker: every event at least once, and a repeat is the very same message."""
    messages = _killed_and_followed(station, life, header_of, tmp_path)
    assert {header_of(message, "ce_id") for message in messages} == set(_stored(station))
    values = defaultdict(set)
    for message in messages:
        values[header_of(message, "ce_id")].add(message.value())
    assert all(len(found) == 1 for found in values.values())


def test_the_topics_have_ids(station: "Station") -> None:
    """By them one that was made anew is recognised."""
    admin, names = make_admin(station.settings), set(station.topics.all)
    ids = station.wait(lambda: topic_ids(admin, (*names, "nowhere")), lambda found: found.keys() >= names)
    assert ids.keys() == names
    assert len(set(ids.values())) == len(ids)
