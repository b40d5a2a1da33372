"""The little that both stand-ins need of Kafka: topics that exist, and a delivery that is certain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Outgoing:
    """A message to send; headers are UTF-8 strings."""

    topic: str
    key: str | None
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def create_missing_topics(bootstrap_servers: str, names: Sequence[str]) -> None:
    """Create topics of one partition where they are missing; raises KafkaException when the brokers do not answer."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 3})
    existing = admin.list_topics(timeout=_TIMEOUT_S).topics
    missing = [NewTopic(name, num_partitions=1, replication_factor=1) for name in names if name not in existing]
    if not missing:
        return
    for name, created in admin.create_topics(missing, operation_timeout=_TIMEOUT_S).items():
        try:
            created.result(_TIMEOUT_S)
        except KafkaException:
            # The other stand-in may have been quicker.
            if name not in admin.list_topics(timeout=_TIMEOUT_S).topics:
                raise


def new_producer(bootstrap_servers: str) -> Producer:
    """Give a producer that waits for all replicas and sends at once."""
    return Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "linger.ms": 0})


def deliver(producer: Producer, outgoing: Outgoing) -> None:
    """Send a message and wait until the brokers have it; raises KafkaException when they do not in ten seconds."""
    failures: list[KafkaException] = []
    delivered: list[Message] = []

    def note(error: object, message: Message) -> None:
        if error is None:
            delivered.append(message)
        else:
            failures.append(KafkaException(error))

    producer.produce(
        outgoing.topic,
        key=outgoing.key,
        value=outgoing.value,
        headers=list(outgoing.headers.items()),
        on_delivery=note,
    )
    producer.flush(_TIMEOUT_S)
    if failures:
        raise failures[0]
    if not delivered:
        raise KafkaException(f"topic {outgoing.topic}: not delivered within {_TIMEOUT_S:g} s")


def text_headers(message: Message) -> dict[str, str]:
    """Give a message's headers as text; of a name that comes twice, the last."""
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return {name: value.decode() if isinstance(value, bytes) else value or "" for name, value in pairs}
