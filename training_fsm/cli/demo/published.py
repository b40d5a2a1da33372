"""What of a run went out over Kafka."""

import json
import time
import uuid

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from training_fsm.messaging.topics import Topics
from training_fsm.settings import Settings

TIMEOUT_S = 15.0


def published_versions(settings: Settings, run_id: str, up_to: int) -> list[int]:
    """Versions of a run's events on the events topic, in their order, until `up_to` has come or time is over."""
    topic = Topics.with_prefix(settings.topic_prefix).events
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            **settings.kafka_options,
            "group.id": f"demo-{uuid.uuid4()}",  # never joined: partitions are assigned by hand
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    versions: list[int] = []
    deadline = time.monotonic() + TIMEOUT_S
    try:
        known = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in known.partitions])
        while (not versions or versions[-1] < up_to) and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None and message.key() == run_id.encode():
                versions.append(int(json.loads(message.value() or b"")["version"]))
    finally:
        consumer.close()
    return versions
