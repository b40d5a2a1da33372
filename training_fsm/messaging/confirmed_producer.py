"""Single messages onto Kafka, each confirmed by all replicas before the next."""

from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Message

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.messaging.kafka import COMMAND_TIMEOUT_S, make_command_producer
from training_fsm.messaging.topics import Topics
from training_fsm.settings import Settings

CONNECT_TIMEOUT_S = 10


class ConfirmedProducer:
    """Sends what people send: one message at a time, and says where it landed.

    Raises ValueError where librdkafka does not take the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._words: list[str] = []
        self._producer = make_command_producer(settings, lambda error: self._words.append(error.str()))
        self._partitions: dict[str, int] = {}

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: Sequence[tuple[str, bytes]],
        partition: int | None = None,
    ) -> tuple[int, int]:
        """Send a message and wait until all replicas have it; its partition and offset.

        Without a partition, or where the topic has none of this number, the key decides.
        Raises OutsideUnavailable where no broker answers, the topic is not there, or the broker does not confirm.
        """
        count = self._partitions_of(topic)
        delivered: list[Message | KafkaError] = []

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            delivered.append(error if error is not None else message)

        try:
            self._producer.produce(
                topic,
                key=key,
                value=value,
                headers=list(headers),
                partition=partition if partition is not None and partition < count else -1,
                on_delivery=on_delivery,
            )
        except KafkaException as refused:
            raise OutsideUnavailable("kafka", f"{topic} cannot take it: {refused.args[0].str()}") from refused
        self._producer.flush(COMMAND_TIMEOUT_S + 5)
        match delivered:
            case [Message() as message]:
                landed, offset = message.partition(), message.offset()
                assert landed is not None, "a delivered message has a place"
                assert offset is not None, "a delivered message has a place"
                return landed, offset
            case [KafkaError() as error]:
                raise OutsideUnavailable("kafka", f"{topic} did not take the message: {error.str()}")
            case _:
                raise OutsideUnavailable("kafka", f"{topic} did not confirm the message; it may have arrived")

    def _partitions_of(self, topic: str) -> int:
        """How many partitions a topic has; one made by its first message would have the broker's defaults, not ours."""
        if topic in self._partitions:
            return self._partitions[topic]
        servers = self._settings.bootstrap_servers
        try:
            topics = self._producer.list_topics(timeout=CONNECT_TIMEOUT_S).topics
        except KafkaException as error:
            self._producer.poll(0)  # lets error_cb speak
            reason = self._words[0] if self._words else error.args[0].str()
            raise OutsideUnavailable("kafka", f"{servers} does not answer: {reason}") from error
        if topic not in topics:
            ours = topic in Topics.with_prefix(self._settings.topic_prefix).all
            hint = "; `training-fsm orchestrator` makes it" if ours else ""
            raise OutsideUnavailable("kafka", f"{servers} has no topic {topic} yet{hint}")
        self._partitions[topic] = len(topics[topic].partitions)
        return self._partitions[topic]
