"""Commands onto Kafka, as CloudEvents in binary form."""

import getpass
import json
import os
import socket
from dataclasses import dataclass
from uuid import uuid4

from training_fsm.domain.commands import Command, RequestTraining
from training_fsm.messaging.confirmed_producer import ConfirmedProducer
from training_fsm.messaging.topics import Topics
from training_fsm.settings import Settings


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
    producer = ConfirmedProducer(settings)
    pairs = [(name, text.encode()) for name, text in headers.items()]
    partition, offset = producer.send(topic, command.run_id.encode(), _data(command), pairs)
    return Sent(command.run_id, source, command_id, topic, partition, offset)


def _data(command: Command) -> bytes:
    """The command's fields; those of a request stand beside its run id."""
    fields = command.model_dump(mode="json")
    if isinstance(command, RequestTraining):
        fields |= fields.pop("request")
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
