"""The stand-in of preprocess as a Kafka service: consumes requests, fills the Feast repository, answers.

At least once: the offset is committed after the answer has been delivered. An invalid request goes to
`retry.preprocess-data` three times, then to `dlq.preprocess-data`, and nothing says so on `error.*`.
"""

import logging
import threading

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition
from pydantic import ValidationError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from training_fsm.local.standin.answers import answer
from training_fsm.local.standin.feast_repository import FeastRepository
from training_fsm.local.standin.kafka import Outgoing, create_missing_topics, deliver, new_producer, text_headers
from training_fsm.local.standin.wire import (
    DEAD_LETTER_TOPIC,
    REQUESTED_TOPIC,
    RETRY_TOPIC,
    TOPICS,
    PreprocessingRequest,
)

SOURCES = (REQUESTED_TOPIC, RETRY_TOPIC)
GROUP = "drl-trading-preprocess"
RETRIES_MAX = 3
RETRY_HEADER = "retry_attempt"
_log = logging.getLogger("standin.preprocess")


def _retry_or_bury(message: Message, error: ValidationError) -> Outgoing:
    attempt = 1
    if message.topic() == RETRY_TOPIC:
        attempt += int(text_headers(message)[RETRY_HEADER])
    topic = RETRY_TOPIC if attempt <= RETRIES_MAX else DEAD_LETTER_TOPIC
    _log.info("invalid topic=%s offset=%d attempt=%d goes_to=%s", message.topic(), message.offset(), attempt, topic)
    key = message.key()
    return Outgoing(
        topic=topic,
        key=key.decode(errors="replace") if key is not None else None,
        value=message.value() or b"",
        headers={
            "original_topic": REQUESTED_TOPIC,
            "error_message": str(error),
            RETRY_HEADER: str(min(attempt, RETRIES_MAX)),
        },
    )


class Preprocess:
    """The service: one consumer, one producer, one repository that only it writes."""

    def __init__(self, bootstrap_servers: str, repository: FeastRepository, answer_delay_s: float) -> None:
        create_missing_topics(bootstrap_servers, TOPICS)
        self._repository = repository
        self._answer_delay_s = answer_delay_s
        self._producer: Producer = new_producer(bootstrap_servers)
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": GROUP,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                # The embedded broker wakes no waiting fetch: a message is seen when the wait ends (500 ms by default).
                "fetch.wait.max.ms": 50,
            }
        )
        self._consumer.assign(self._where_to_go_on())

    @retry(
        retry=retry_if_exception_type(KafkaException),
        stop=stop_after_delay(30),
        wait=wait_fixed(0.2),
        reraise=True,
    )
    def _where_to_go_on(self) -> list[TopicPartition]:
        """Give every partition with its committed offset, or its beginning.

        Partitions are assigned by hand: the service is one process, and joining a group would cost seconds. On a new
        cluster the first question finds no coordinator yet.
        """
        known = self._consumer.list_topics(timeout=10).topics
        committed = self._consumer.committed(
            [TopicPartition(topic, number) for topic in SOURCES for number in known[topic].partitions], timeout=10
        )
        for partition in committed:
            if partition.error is not None:
                raise KafkaException(partition.error)
            if partition.offset < 0:
                partition.offset = OFFSET_BEGINNING
        return committed

    def run(self, stopping: threading.Event) -> None:
        """Answer requests until told to stop; raises KafkaException when the brokers fail."""
        _log.info("consuming topic=%s group=%s", REQUESTED_TOPIC, GROUP)
        try:
            while not stopping.is_set():
                message = self._consumer.poll(0.2)
                if message is not None and not self._handle(message, stopping):
                    break
        finally:
            self._consumer.close()
            _log.info("stopped")

    def _handle(self, message: Message, stopping: threading.Event) -> bool:
        """Answer one message; False when stopped before the answer was due, so that the next start answers it."""
        failure = message.error()
        if failure is not None:
            if not failure.retriable():
                raise KafkaException(failure)
            _log.info("broker error=%s", failure)
            return True
        try:
            request = PreprocessingRequest.model_validate_json(message.value() or b"")
        except ValidationError as error:
            outgoing = _retry_or_bury(message, error)
        else:
            _log.info("requested request_id=%s symbol=%s", request.request_id, request.symbol)
            outgoing = answer(request, self._repository)
            if stopping.wait(self._answer_delay_s):
                return False
        deliver(self._producer, outgoing)
        self._consumer.commit(message=message, asynchronous=False)
        _log.info(
            "answered topic=%s event_type=%s key=%s", outgoing.topic, outgoing.headers.get("event_type"), outgoing.key
        )
        return True
