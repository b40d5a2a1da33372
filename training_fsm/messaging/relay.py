"""The log goes out over Kafka: every event once, in order, by one leader."""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable

import structlog
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from training_fsm.domain.errors import OutsideUnavailable, TrainingFsmError
from training_fsm.messaging.event_message import to_messages
from training_fsm.messaging.topics import Topics, topic_ids
from training_fsm.ports import StoredEvent
from training_fsm.store.outbox import PostgresOutbox

log = structlog.get_logger()

BATCH_MAX = 500
BATCH_BYTES_MAX = 8_000_000
"""Of payload in one transaction; an event alone may have half a megabyte."""
TOPIC_LOOK_S = 10.0
"""Between two looks whether the events topic is still the one that the cursor belongs to."""
IDLE_S = 0.05
"""Between two looks at the log when nothing wakes the relay."""
RECOMMIT_S = 3600.0
"""Kafka forgets offsets of a group without members: the cursor is committed again this often."""
KAFKA_TIMEOUT_S = 15.0


class RelayLostError(Exception):
    """The relay must begin again: Kafka refused a message for good, or the topic became another one."""


class RelayLeadsError(TrainingFsmError):
    """Another process leads the relay."""


class Relay:
    """Publishes committed events. The cursor lies in the Kafka transaction that publishes."""

    def __init__(
        self,
        outbox: PostgresOutbox,
        topics: Topics,
        make_producer: Callable[[], Producer],
        make_consumer: Callable[[], Consumer],
        admin: AdminClient,
        create_topics: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._topics = topics
        self._make_producer = make_producer
        self._make_consumer = make_consumer
        self._admin = admin
        self._create_topics = create_topics
        self._published = 0
        """The highest position that has gone out, also where the cursor was wound back since."""
        self._restored_at: tuple[int, ...] = ()
        self.wake = threading.Event()
        """Set by whoever has just appended in this process."""

    def run(self, stop: threading.Event) -> None:
        """Lead when nobody else does, publish while leading, begin again after every fault.

        Raises TopicsRefused.
        """
        pause_s = 0.1
        while not stop.is_set():
            try:
                with self._outbox.leadership() as leads:
                    if leads:
                        self._lead(stop)
                    else:
                        stop.wait(1.0)
                pause_s = 0.1
            except (KafkaException, OutsideUnavailable, RelayLostError) as error:
                log.warning("relay starts again", error=str(error), pause_s=pause_s)
                stop.wait(pause_s)
                pause_s = min(pause_s * 2, 5.0)

    def _lead(self, stop: threading.Event) -> None:
        producer, consumer = self._make_producer(), self._make_consumer()
        try:
            producer.init_transactions(KAFKA_TIMEOUT_S)  # fences whoever led before; only then is the cursor final
            self._create_topics()
            topic_id = self._topic_id()
            if topic_id is None:
                raise OutsideUnavailable("kafka", f"topic {self._topics.events} is not there")
            cursor = self._cursor(consumer, topic_id)
            self._restored_at = self._outbox.restored_at()
            log.info("relay leads", cursor=cursor)
            committed_at = looked_at = time.monotonic()
            while not stop.is_set():
                if time.monotonic() - looked_at > TOPIC_LOOK_S:
                    if self._topic_id() != topic_id:
                        raise RelayLostError(f"topic {self._topics.events} was deleted or made anew")
                    if not self._outbox.in_place():
                        raise RelayLostError("the log was restored, or another server took over")
                    looked_at = time.monotonic()
                sent = self._publish(producer, consumer, topic_id, cursor)
                if sent != cursor:
                    cursor, committed_at = sent, time.monotonic()
                    continue
                if time.monotonic() - committed_at > RECOMMIT_S:
                    self._transact(producer, consumer, [], cursor)
                    committed_at = time.monotonic()
                self.wake.wait(IDLE_S)
                self.wake.clear()
        finally:
            consumer.close()
            del producer

    def rewind(self, position: int) -> None:
        """Let the log go out again from a position on, by whoever leads next; consumers know repeats by their ids.

        Raises RelayLeadsError while a relay leads, ValueError for a position that the relay has not come to: what
        lies before it would never go out. KafkaException, OutsideUnavailable where one of them is away.
        """
        cursor = max(position - 1, 0)
        with self._outbox.leadership() as leads:
            if not leads:
                raise RelayLeadsError("an orchestrator leads the relay: stop all of them first")
            producer, consumer = self._make_producer(), self._make_consumer()
            try:
                producer.init_transactions(KAFKA_TIMEOUT_S)
                topic_id = self._topic_id()
                if topic_id is None:
                    raise OutsideUnavailable("kafka", f"topic {self._topics.events} is not there")
                if cursor > (reached := self._cursor(consumer, topic_id)):
                    raise ValueError(f"expected at most {reached + 1}, the first position that has not gone out yet")
                self._transact(producer, consumer, [], cursor)
                self._outbox.remember_relayed(self._topics.events, topic_id, cursor)
            finally:
                consumer.close()
                del producer

    def _topic_id(self) -> str | None:
        return topic_ids(self._admin, (self._topics.events,)).get(self._topics.events)

    def _cursor(self, consumer: Consumer, topic_id: str) -> int:
        """Kafka's own, or our copy for this incarnation of the topic, or the beginning."""
        committed = consumer.committed([self._cursor_at()], timeout=KAFKA_TIMEOUT_S)[0]
        if committed.error:
            raise KafkaException(committed.error)
        kept = committed.offset if committed.offset is not None and committed.offset >= 0 else None
        copy = self._outbox.relayed_position(self._topics.events, topic_id)
        if copy is None:
            # Another topic than the one we knew, or the first: all of the log goes out, whatever the group remembers.
            self._outbox.remember_relayed(self._topics.events, topic_id, 0)
            cursor = 0
        else:
            cursor = copy if kept is None else kept
        self._published = max(cursor, kept or 0, int(committed.metadata or 0))
        if restored := self._outbox.settle(self._published):
            log.warning("log restored: commands and answers are read again", **restored.model_dump())
        return cursor

    def _cursor_at(self, offset: int = OFFSET_INVALID) -> TopicPartition:
        # A broker may forget the metadata, as the embedded one does: then what was wound back is not known any more.
        return TopicPartition(self._topics.events, 0, offset, str(self._published))

    def _publish(self, producer: Producer, consumer: Consumer, topic_id: str, cursor: int) -> int:
        """Publish the next batch behind the cursor and return where it then stands."""
        if self._outbox.last_position() <= cursor:
            return cursor
        horizon = self._outbox.horizon()
        if horizon is None or horizon <= cursor:
            return cursor
        events = self._outbox.read(cursor, horizon, BATCH_MAX, BATCH_BYTES_MAX)
        if not events:
            return cursor
        position = events[-1].position
        self._transact(producer, consumer, events, position)
        self._outbox.remember_relayed(self._topics.events, topic_id, position)
        return position

    def _transact(self, producer: Producer, consumer: Consumer, events: list[StoredEvent], position: int) -> None:
        failures: list[str] = []
        self._published = max(self._published, position)
        producer.begin_transaction()
        try:
            for event in events:
                for message in to_messages(event, self._topics, self._last_restored(event.position)):
                    producer.produce(
                        message.topic,
                        key=message.key,
                        value=message.value,
                        headers=message.headers,
                        on_delivery=lambda error, _: failures.append(error.str()) if error else None,
                    )
                producer.poll(0)
            producer.send_offsets_to_transaction(
                [self._cursor_at(position)], consumer.consumer_group_metadata(), KAFKA_TIMEOUT_S
            )
            producer.commit_transaction(KAFKA_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                producer.abort_transaction(KAFKA_TIMEOUT_S)
            raise
        if failures:
            raise RelayLostError(f"not delivered: {failures[0]}")

    def _last_restored(self, position: int) -> int:
        """Where the log had been restored last when this position was written; 0 where it never was."""
        before = bisect_right(self._restored_at, position)
        return self._restored_at[before - 1] if before else 0
