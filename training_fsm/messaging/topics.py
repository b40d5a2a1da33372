"""Our topics and the neighbours', and the making of ours."""

from concurrent.futures import Future
from dataclasses import dataclass

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from training_fsm.domain.errors import TrainingFsmError

log = structlog.get_logger()

PREPROCESS_COMPLETED = ("completed.preprocess-data.offline", "completed.preprocess-data")
"""Where answers to requests of processing context `training` come, and to unknown ones."""
PREPROCESS_ERROR = "error.preprocess-data"


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of our own topics."""

    requested: str
    events: str
    completed: str
    error: str
    dead_letters: str

    @classmethod
    def with_prefix(cls, prefix: str) -> "Topics":
        """The names behind a prefix, which may be empty."""
        kinds = ("requested", "events", "completed", "error", "dlq")
        return cls(*(f"{prefix}{kind}.train-model" for kind in kinds))

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic that we create."""
        return (self.requested, self.events, self.completed, self.error, self.dead_letters)


class TopicsRefused(TrainingFsmError):
    """Kafka will not create a topic of ours, whenever it is asked."""


_FOR_GOOD = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.POLICY_VIOLATION,
    }
)


def create_missing(admin: AdminClient, names: tuple[str, ...], partitions: int, replication: int) -> None:
    """Create the topics that are not there yet; where all are, no right to create is needed.

    Raises TopicsRefused where the broker refuses for good, KafkaException where trying again may help.
    """
    there = topic_ids(admin, names)
    missing = [name for name in names if name not in there]
    if not missing:
        return
    wanted = [NewTopic(name, num_partitions=partitions, replication_factor=replication) for name in missing]
    future: Future[None]
    for name, future in admin.create_topics(wanted, operation_timeout=30).items():
        try:
            future.result()
            log.info("topic created", topic=name, partitions=partitions)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() in _FOR_GOOD:
                raise TopicsRefused(f"kafka refuses to create topic {name}: {reason.str()}") from error
            if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def topic_ids(admin: AdminClient, names: tuple[str, ...]) -> dict[str, str]:
    """The broker's ids of the topics; those that are not there are left out. Raises KafkaException."""
    ids = {}
    for name, future in admin.describe_topics(TopicCollection(list(names)), request_timeout=10).items():
        try:
            ids[name] = str(future.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
    return ids
