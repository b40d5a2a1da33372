"""What health and metrics read of a real log and of a real broker."""

import json
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.broker import Broker
from training_fsm.messaging.topics import create_missing
from training_fsm.observability.kafka_health import read_kafka
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.store.health_reads import PostgresHealth
from training_fsm.store.outbox import PostgresOutbox


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """An empty log."""
    engine = make_engine(migrated_database_url, application_name="test")
    yield engine
    engine.dispose()


def test_an_empty_log_reads_as_nothing(engine: sa.Engine) -> None:
    """Without a row every number is 0, and none is missing."""
    reading = PostgresHealth(engine).log_reading("events.train-model")
    assert json.loads(reading.model_dump_json()) == {
        "states": [],
        "questions_open": 0,
        "oldest_question_s": 0,
        "last_position": 0,
        "relay_behind": 0,
        "relay_behind_s": 0,
        "accepted": 0,
        "refused": 0,
        "dead_letters": 0,
    }


def test_runs_are_counted_by_what_they_wait_for(engine: sa.Engine, live: Callable[..., Run]) -> None:
    """Due, held by a worker, left by one, pausing after a failure, ended: each counts once."""
    for run_id in ("due", "held", "left", "pausing"):
        live(engine, run_id, until=4)
    live(engine, "done")
    log = PostgresEventLog(engine)
    assert log.claim("worker-1", 60, "held") is not None
    assert log.claim("worker-1", 60, "left") is not None
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "UPDATE run_heads SET changed_at = changed_at - interval '1 h', "
                "lease_until = clock_timestamp() - interval '7 s' WHERE run_id = 'left'"
            )
        )
        connection.execute(
            sa.text("UPDATE run_heads SET due_at = clock_timestamp() + interval '1 h' WHERE run_id = 'pausing'")
        )
    states = {each.state: each for each in PostgresHealth(engine).log_reading("events").states}
    training = states[State.TRAINING]
    assert (training.runs, training.due, training.held, training.silent, training.backing_off) == (4, 2, 1, 1, 1)
    assert training.due_s >= 7
    assert states[State.REGISTERED].runs == 1
    assert states[State.REGISTERED].due == 0


def test_open_question_has_the_age_of_its_event(engine: sa.Engine, live: Callable[..., Run]) -> None:
    """A run that waits for preprocess is an open question, as old as its last FeaturesRequested."""
    live(engine, "answered", until=4)
    live(engine, "open", until=3)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE events DISABLE TRIGGER ALL"))
        connection.execute(
            sa.text(
                "UPDATE events SET occurred_at = clock_timestamp() - interval '1 h' WHERE type = 'features_requested'"
            )
        )
    reading = PostgresHealth(engine).log_reading("events")
    assert reading.questions_open == 1
    assert reading.oldest_question_s >= 3600


def test_relay_lag_is_what_lies_behind_the_cursor(engine: sa.Engine, live: Callable[..., Run]) -> None:
    """Before the first publication all of the log lags; what is published does not; not by another topic's cursor."""
    live(engine, "run-1", until=4)
    health, outbox = PostgresHealth(engine), PostgresOutbox(engine)
    last = outbox.last_position()
    before = health.log_reading("events")
    assert (before.last_position, before.relay_behind) == (last, last)
    assert before.relay_behind_s > 0
    outbox.remember_relayed("events", "topic-1", last - 1)
    assert health.log_reading("events").relay_behind == 1
    outbox.remember_relayed("events", "topic-1", last)
    caught_up = health.log_reading("events")
    assert (caught_up.relay_behind, caught_up.relay_behind_s) == (0, 0)
    assert health.log_reading("other").relay_behind == last


def test_commands_and_letters_of_the_last_hour(engine: sa.Engine) -> None:
    """Those of yesterday are not counted."""
    insert = sa.text(
        "INSERT INTO commands (source, command_id, command_type, outcome, received_at) "
        "VALUES ('s', :id, 'cancel_run', :outcome, clock_timestamp() - make_interval(hours => :hours))"
    )
    rows = [("a", "accepted", 0), ("b", "refused", 0), ("c", "refused", 0), ("d", "refused", 24)]
    with engine.begin() as connection:
        for command_id, outcome, hours in rows:
            connection.execute(insert, {"id": command_id, "outcome": outcome, "hours": hours})
    reading = PostgresHealth(engine).log_reading("events")
    assert (reading.accepted, reading.refused, reading.dead_letters) == (1, 2, 0)


def test_lease_is_the_holder_s_alone(engine: sa.Engine, live: Callable[..., Run]) -> None:
    """It tells what is left of a lease, below 0 once it ran out, and nothing to an earlier holder."""
    live(engine, "run-1", until=4)
    log, health = PostgresEventLog(engine), PostgresHealth(engine)
    claimed = log.claim("worker-1", 60)
    assert claimed is not None
    _, lease = claimed
    left_s = health.lease_left_s("run-1", lease.token)
    assert left_s is not None
    assert 0 < left_s <= 60
    assert health.lease_left_s("run-1", lease.token - 1) is None
    log.release(lease)
    assert health.lease_left_s("run-1", lease.token) is None


def test_a_read_that_takes_too_long_is_ended(engine: sa.Engine) -> None:
    """A table that somebody has locked costs a scrape seconds, not for ever."""
    with engine.begin() as connection:
        connection.execute(sa.text("LOCK TABLE run_heads IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(OutsideUnavailable, match="statement timeout"):
            PostgresHealth(engine).log_reading("events")


def test_reads_need_no_right_to_write(engine: sa.Engine) -> None:
    """Everything that is read for a scrape is read in a transaction that could be a replica's."""
    read_only = engine.execution_options(postgresql_readonly=True)
    assert PostgresHealth(read_only).log_reading("events").last_position == 0
    PostgresHealth(read_only).reach()
    assert PostgresHealth(read_only).lease_left_s("nobody", 1) is None


def test_topics_and_intake_lag(broker: Broker, topic_prefix: str) -> None:
    """A missing topic is named; lag is what the group has not committed, from the beginning where it never did."""
    topic, other, missing = (f"{topic_prefix}{name}" for name in ("requested", "events", "missing"))
    admin, group = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0}), f"{topic_prefix}group"
    create_missing(admin, (topic, other), 2, 1)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 0, "log_level": 0})
    for number in range(5):  # each a batch of its own: the embedded broker's ends count batches
        producer.produce(topic, b"{}", partition=number % 2)
        assert producer.flush(20) == 0
    fresh = read_kafka(admin, group, (topic, missing), (other,))
    assert (fresh.present, fresh.missing, fresh.lag) == ({topic, other}, (missing,), {topic: 5})
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group, "log_level": 0})
    consumer.commit(offsets=[TopicPartition(topic, 0, 3), TopicPartition(topic, 1, 1)], asynchronous=False)
    consumer.close()
    assert read_kafka(admin, group, (topic, missing), (other,)).lag == {topic: 1}


def test_lag_that_cannot_be_measured_is_left_out(broker: Broker, topic_prefix: str) -> None:
    """An end before the committed offset is a broker that counts otherwise: no number is better than a wrong one."""
    topic, group = f"{topic_prefix}requested", f"{topic_prefix}group"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    create_missing(admin, (topic,), 1, 1)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group, "log_level": 0})
    consumer.commit(offsets=[TopicPartition(topic, 0, 1000)], asynchronous=False)
    consumer.close()
    reading = read_kafka(admin, group, (topic,), ())
    assert (reading.present, reading.lag) == ({topic}, {})


def test_nothing_to_read_has_no_lag(broker: Broker, topic_prefix: str) -> None:
    """Where none of the topics is there, the brokers were reached all the same."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    reading = read_kafka(admin, f"{topic_prefix}group", (f"{topic_prefix}a",), (f"{topic_prefix}b",))
    assert (reading.present, len(reading.missing), reading.lag) == (frozenset(), 2, {})
