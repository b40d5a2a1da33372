"""Topics: made where missing, and noticed when they are made anew."""

import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.messaging import topic_lifetime, topic_watch
from training_fsm.messaging.kafka import make_admin
from training_fsm.messaging.topic_lifetime import TopicLifetime
from training_fsm.messaging.topic_watch import TopicWatch
from training_fsm.messaging.topics import TopicsRefused, create_missing, topic_ids
from training_fsm.service.housekeeping_service import MessageLifetime
from training_fsm.settings import Settings
from training_fsm.store.outbox import PostgresOutbox

if TYPE_CHECKING:
    from conftest import Station


def _made_anew(station: "Station", topic: str) -> None:
    """Delete a topic and make it again at once."""
    admin = make_admin(station.settings)
    old = station.wait(lambda: topic_ids(admin, (topic,)).get(topic))
    admin.delete_topics([topic])[topic].result(timeout=20)

    def made() -> bool:
        try:
            admin.create_topics([NewTopic(topic, 3, 1)])[topic].result(timeout=20)
        except KafkaException:
            return False
        return True

    station.wait(made)
    station.wait(lambda: topic_ids(admin, (topic,)).get(topic, old), lambda now: now != old)


def test_only_missing_topics_are_created(station: "Station") -> None:
    """Those that are there keep their partitions and their messages."""
    admin: AdminClient = make_admin(station.settings)
    prefix = station.settings.topic_prefix
    before = station.wait(lambda: topic_ids(admin, station.topics.all), lambda ids: len(ids) == 5)
    create_missing(admin, (*station.topics.all, f"{prefix}new"), partitions=2, replication=1)
    station.wait(lambda: f"{prefix}new" in admin.list_topics(timeout=10).topics)
    topics = admin.list_topics(timeout=10).topics
    assert len(topics[f"{prefix}new"].partitions) == 2
    assert {len(topics[name].partitions) for name in station.topics.all} == {3}
    assert topic_ids(admin, station.topics.all) == before


def test_a_broker_s_refusal_to_create_is_raised(kafka_station: "Station") -> None:
    """More replicas than there are brokers is not passed over."""
    name = f"{kafka_station.settings.topic_prefix}new"
    with pytest.raises(TopicsRefused, match=name):
        create_missing(make_admin(kafka_station.settings), (name,), partitions=1, replication=3)


def test_ids_are_remembered_and_another_id_is_told_once(station: "Station") -> None:
    """Across processes: the memory is Postgres."""
    outbox = PostgresOutbox(station.engine)
    assert outbox.remember_topics({}) == frozenset()
    assert outbox.remember_topics({"a": "1", "b": "1"}) == frozenset()
    assert PostgresOutbox(station.engine).remember_topics({"a": "2", "b": "1", "c": "1"}) == {"a"}
    assert outbox.remember_topics({"a": "2", "b": "1", "c": "1"}) == frozenset()


def test_the_copy_of_the_cursor_belongs_to_one_incarnation_of_a_topic(station: "Station") -> None:
    """Under another id there is none."""
    outbox = PostgresOutbox(station.engine)
    outbox.remember_relayed("t", "1", 7)
    assert (outbox.relayed_position("t", "1"), outbox.relayed_position("t", "2")) == (7, None)
    assert outbox.remember_topics({"t": "2"}) == {"t"}
    assert outbox.relayed_position("t", "2") is None


@dataclass
class _Shared:
    """A memory that another process has told of a change already."""

    told: list[Mapping[str, str]] = field(default_factory=list)

    def remember_topics(self, ids: Mapping[str, str]) -> frozenset[str]:
        self.told.append(ids)
        return frozenset()


def test_every_process_notices_a_topic_made_anew(kafka_station: "Station") -> None:
    """Also the one that is not the first to tell the memory of it."""
    topic = kafka_station.topics.requested
    admin = make_admin(kafka_station.settings)
    kafka_station.wait(lambda: topic_ids(admin, (topic,)))
    watch = TopicWatch(admin, _Shared(), (topic,))
    watch.look()
    assert watch.take_changed() == frozenset()
    assert not watch.made_anew(topic)
    _made_anew(kafka_station, topic)
    watch.look()
    assert watch.take_changed() == {topic}
    assert watch.take_changed() == frozenset()
    assert watch.made_anew(topic)


def test_a_watch_goes_on_while_postgres_is_away(station: "Station", monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again at the next interval."""
    monkeypatch.setattr(topic_watch, "INTERVAL_S", 0.05)
    looks: list[None] = []

    class Away:
        def remember_topics(self, ids: Mapping[str, str]) -> frozenset[str]:
            looks.append(None)
            raise OutsideUnavailable("postgres", "away")

    stop = threading.Event()
    watch = TopicWatch(make_admin(station.settings), Away(), (station.topics.requested,))
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    station.wait(lambda: len(looks), lambda count: count >= 2)
    stop.set()
    thread.join()


def test_commands_sent_right_after_a_topic_was_made_anew_are_all_read(
    kafka_station: "Station", request_fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running consumer would lose the first ones without a word."""
    monkeypatch.setattr(topic_watch, "INTERVAL_S", 0.3)
    station, topic = kafka_station, kafka_station.topics.requested
    run_ids = [f"before-{number}" for number in range(20)]

    def heads() -> set[object]:
        return {row.run_id for row in station.rows("SELECT run_id FROM run_heads")}

    with station.orchestrator():
        for run_id in run_ids:
            station.command("request_training", request_fields | {"run_id": run_id})
        station.wait(heads, lambda ids: ids == set(run_ids))
        for turn in range(2):
            _made_anew(station, topic)
            for number in range(25):
                run_ids.append(f"after-{turn}-{number}")
                station.command("request_training", request_fields | {"run_id": run_ids[-1]})
                time.sleep(0.01)
            station.wait(heads, lambda ids: ids == set(run_ids))
    assert not station.rows("SELECT 1 FROM commands WHERE outcome = 'refused'")


def test_apache_kafka_tells_how_long_a_message_can_lie(kafka_station: "Station") -> None:
    """Its retention and a segment's life together; for ever where the topic is kept so, or compacted only."""
    admin, topic = make_admin(kafka_station.settings), kafka_station.topics.requested
    days = timedelta(days=1) / timedelta(milliseconds=1)

    def configured(**values: str) -> MessageLifetime | None:
        name = f"{topic}.{uuid.uuid4().hex[:6]}"
        config = {key.replace("_", "."): value for key, value in values.items()}
        admin.create_topics([NewTopic(name, 1, 1, config=config)])[name].result(timeout=20)
        kafka_station.wait(lambda: topic_ids(admin, (name,)))
        return TopicLifetime(admin, name).lifetime()

    both = configured(retention_ms=f"{3 * days:.0f}", segment_ms=f"{days:.0f}")
    assert both == MessageLifetime(timedelta(days=4))
    assert configured(retention_ms="-1") == configured(cleanup_policy="compact") == MessageLifetime(None)


def test_the_embedded_broker_does_not_tell_how_long_a_message_can_lie(station: "Station") -> None:
    """That is told apart from a broker that does not answer."""
    if os.environ.get("TEST_BROKER") == "kafka":
        pytest.skip("this is about the embedded broker")
    assert TopicLifetime(make_admin(station.settings), station.topics.requested).lifetime() is None


def test_a_broker_that_is_away_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no knowledge of how long a message can lie."""
    monkeypatch.setattr(topic_lifetime, "TIMEOUT_S", 1)
    quiet = Settings(bootstrap_servers="127.0.0.1:1", kafka_options={"log_level": "0"})
    with pytest.raises(OutsideUnavailable, match="kafka: settings of t: "):
        TopicLifetime(make_admin(quiet), "t").lifetime()
