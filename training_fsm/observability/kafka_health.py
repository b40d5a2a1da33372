"""What health and metrics ask of Kafka: which topics are there, and how far the intake lags behind."""

from collections.abc import Iterable

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from training_fsm.domain.model import Model

REQUEST_S_MAX = 5.0

Place = tuple[str, int]


class KafkaReading(Model):
    """The brokers as this process sees them."""

    present: frozenset[str]
    """Those of the wanted topics that are there."""
    missing: tuple[str, ...]
    lag: dict[str, int]
    """Messages that the group has not committed, by topic; a topic where this cannot be measured is left out."""


def read_kafka(admin: AdminClient, group: str, read: Iterable[str], written: Iterable[str]) -> KafkaReading:
    """Look once; `read` are the topics that `group` reads, `written` others. Raises KafkaException."""
    wanted = (*read, *written)
    partitions = _partitions(admin, wanted)
    places = [TopicPartition(topic, number) for topic in read for number in partitions.get(topic, ())]
    return KafkaReading(
        present=frozenset(partitions),
        missing=tuple(topic for topic in wanted if topic not in partitions),
        lag=_lag(admin, group, places) if places else {},
    )


def _partitions(admin: AdminClient, topics: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    found = {}
    described = admin.describe_topics(TopicCollection(list(topics)), request_timeout=REQUEST_S_MAX)
    for name, future in described.items():
        try:
            found[name] = tuple(partition.id for partition in future.result().partitions)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
    return found


def _lag(admin: AdminClient, group: str, places: list[TopicPartition]) -> dict[str, int]:
    """Up to the end of each partition; without a committed offset, from its beginning."""
    asked = [ConsumerGroupTopicPartitions(group, places)]
    committed = admin.list_consumer_group_offsets(asked, request_timeout=REQUEST_S_MAX)[group].result()
    offsets = {(each.topic, each.partition): each.offset for each in committed.topic_partitions}
    ends = _offsets(admin, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
    fresh = [place for place in places if offsets.get((place.topic, place.partition), -1) < 0]
    if fresh:
        offsets |= _offsets(admin, fresh, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    lag: dict[str, int] = {}
    unmeasurable = set()
    for (topic, partition), end in ends.items():
        behind = end - offsets[topic, partition]
        if behind < 0:  # a broker that counts batches, not messages, cannot tell
            unmeasurable.add(topic)
        lag[topic] = lag.get(topic, 0) + behind
    return {topic: behind for topic, behind in lag.items() if topic not in unmeasurable}


def _offsets(admin: AdminClient, places: list[TopicPartition], spec: OffsetSpec) -> dict[Place, int]:
    listed = admin.list_offsets(dict.fromkeys(places, spec), request_timeout=REQUEST_S_MAX)
    return {(place.topic, place.partition): future.result().offset for place, future in listed.items()}
