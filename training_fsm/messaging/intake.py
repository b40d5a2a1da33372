"""The polling loop: one poll of Kafka is one transaction in Postgres, then the offsets."""

import threading
import time
from collections.abc import Callable, Sequence

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from training_fsm.domain.errors import Conflict, OutsideUnavailable
from training_fsm.domain.inbound import Inbound
from training_fsm.messaging.command_listener import hear_command
from training_fsm.messaging.message import Message, dead_letter, from_kafka
from training_fsm.messaging.preprocessing_listener import PREPROCESS_TOPICS, hear_preprocess
from training_fsm.messaging.topic_watch import TopicWatch
from training_fsm.store.errors import is_database_fault

log = structlog.get_logger()

BATCH_MAX = 500
POLL_S = 0.2
_MISSING = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED})


class Intake:
    """Reads commands and preprocess's answers, and hands them on in batches, each at least once."""

    def __init__(
        self,
        consumer: Consumer,
        commands_topic: str,
        handle: Callable[[Sequence[Inbound]], None],
        watch: TopicWatch,
        committed: Callable[[], None],
    ) -> None:
        self._consumer = consumer
        self._commands_topic = commands_topic
        self._handle = handle
        self._watch = watch
        self._committed = committed
        self._rewound: set[tuple[str, int]] = set()

    def run(self, stop: threading.Event) -> None:
        """Poll until told to stop; closing the consumer leaves the group at once."""
        self._consumer.subscribe([self._commands_topic, *PREPROCESS_TOPICS], on_assign=self._on_assign)
        try:
            while not stop.is_set():
                self._rewind()
                if messages := self._poll():
                    self._until_stored(messages, stop)
        finally:
            self._consumer.close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            place = (partition.topic, partition.partition)
            if self._watch.made_anew(partition.topic) and place not in self._rewound:
                self._rewound.add(place)
                partition.offset = OFFSET_BEGINNING
        consumer.assign(partitions)

    def _rewind(self) -> None:
        """A topic deleted and made anew under us would lose its first messages: read it from its beginning."""
        for topic in self._watch.take_changed():
            self._rewound = {place for place in self._rewound if place[0] != topic}
            for partition in self._consumer.assignment():
                if partition.topic == topic:
                    self._rewound.add((topic, partition.partition))
                    self._consumer.seek(TopicPartition(topic, partition.partition, OFFSET_BEGINNING))
                    log.warning("topic made anew, read from its beginning", topic=topic, partition=partition.partition)

    def _poll(self) -> list[Message]:
        first = self._consumer.poll(POLL_S)
        if first is None:
            return []
        rest = self._consumer.consume(BATCH_MAX - 1, timeout=0)  # whatever is there already, without waiting for more
        return [plain for message in (first, *rest) if (plain := _plain(message)) is not None]

    def _until_stored(self, messages: Sequence[Message], stop: threading.Event) -> None:
        pause_s = 0.1
        while messages:
            try:
                self._store(messages)
            except OutsideUnavailable as error:
                log.warning("waiting", service=error.service, error=error.words)
                if stop.wait(pause_s):
                    return  # not committed: whoever comes next reads them again
                pause_s = min(pause_s * 2, 5.0)
            else:
                break
        self._commit(messages)
        self._committed()

    def _store(self, messages: Sequence[Message]) -> None:
        """Store a batch; one that will not go as a whole goes in halves, and a poison message becomes a letter."""
        try:
            self._handle([inbound for message in messages if (inbound := self._hear(message)) is not None])
        except OutsideUnavailable:
            raise
        except Exception as error:
            if is_database_fault(error):
                # A valid command must not become a letter because of, say, an index that is damaged.
                raise OutsideUnavailable("postgres", str(error)) from error
            if len(messages) > 1:
                half = len(messages) // 2
                self._store(messages[:half])
                self._store(messages[half:])
            elif isinstance(error, Conflict):
                raise OutsideUnavailable("postgres", f"still a conflict after five tries: {error}") from error
            else:
                log.exception("message cannot be handled", topic=messages[0].topic, offset=messages[0].offset)
                self._handle(
                    [dead_letter(messages[0], f"could not be handled: {type(error).__name__}: {error}"[:2000])]
                )

    def _hear(self, message: Message) -> Inbound | None:
        return hear_command(message) if message.topic == self._commands_topic else hear_preprocess(message)

    def _commit(self, messages: Sequence[Message]) -> None:
        last = {(message.topic, message.partition): message.offset for message in messages}
        offsets = [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in last.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # Harmless: a repeat is recognised by the inbox and by the run's state.
            log.warning("offsets not committed", error=str(error))


def _plain(message: KafkaMessage) -> Message | None:
    error = message.error()
    if error is None:
        return from_kafka(message)
    if error.code() in _MISSING:
        log.warning("topic missing", topic=message.topic(), error=error.str())
        time.sleep(POLL_S)
        return None
    if error.fatal():
        raise KafkaException(error)
    log.warning("kafka", error=error.str())
    return None
