"""Commands onto Kafka, as CloudEvents in binary form."""

import getpass
import json
import os
import socket
from dataclasses import dataclass
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from training_fsm.domain.commands import Command, RequestTraining
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.messaging.kafka import COMMAND_TIMEOUT_S, make_command_producer
from training_fsm.messaging.topics import Topics
from training_fsm.settings import Settings

CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Sent:
    """A command that Kafka has, on all its replicas."""

    run_id: str
    source: str
    command_id: str
    """With the source, its key in the inbox."""
    topic: str
    partition: int
    offset: int


def actor() -> str:
    """The user of the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid-{os.getuid()}"


def send_command(settings: Settings, command: Command) -> Sent:
    """Send one command and wait until all replicas have it.

    Raises OutsideUnavailable where no broker answers, the topic is not there, or the broker does not confirm;
    ValueError where librdkafka does not take the settings.
    """
    topic = Topics.with_prefix(settings.topic_prefix).requested
    source, command_id = f"training-fsm-cli/{actor()}@{socket.gethostname()}"[:200], str(uuid4())
    headers = {
        "ce_specversion": "1.0",
        "ce_id": command_id,
        "ce_source": source,
        "ce_type": command.type,
        "content-type": "application/json",
        "event_type": command.type,
    }
    words: list[str] = []
    producer = make_command_producer(settings, lambda error: words.append(error.str()))
    _require_topic(producer, topic, settings, words)
    delivered: list[Message | KafkaError] = []

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        delivered.append(error if error is not None else message)

    producer.produce(
        topic,
        key=command.run_id.encode(),
        value=_data(command),
        headers=[(name, text.encode()) for name, text in headers.items()],
        on_delivery=on_delivery,
    )
    producer.flush(COMMAND_TIMEOUT_S + 5)
    match delivered:
        case [Message() as message]:
            partition, offset = message.partition(), message.offset()
            assert partition is not None, "a delivered message has a place"
            assert offset is not None, "a delivered message has a place"
            return Sent(command.run_id, source, command_id, topic, partition, offset)
        case [KafkaError() as error]:
            raise OutsideUnavailable("kafka", f"{topic} did not take the command: {error.str()}")
        case _:
            raise OutsideUnavailable("kafka", f"{topic} did not confirm the command; it may have arrived")


def _data(command: Command) -> bytes:
    """The command's fields; those of a request stand beside its run id."""
    fields = command.model_dump(mode="json")
    if isinstance(command, RequestTraining):
        fields |= fields.pop("request")
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _require_topic(producer: Producer, topic: str, settings: Settings, words: list[str]) -> None:
    """A topic made by the first message would have the broker's defaults, not ours."""
    try:
        topics = producer.list_topics(timeout=CONNECT_TIMEOUT_S).topics
    except KafkaException as error:
        producer.poll(0)  # lets error_cb speak
        reason = words[0] if words else error.args[0].str()
        raise OutsideUnavailable("kafka", f"{settings.bootstrap_servers} does not answer: {reason}") from error
    if topic not in topics:
        missing = f"{settings.bootstrap_servers} has no topic {topic} yet; `training-fsm orchestrator` makes it"
        raise OutsideUnavailable("kafka", missing)
