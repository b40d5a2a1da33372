"""Our topics and the neighbours', and the making of ours."""

from concurrent.futures import Future
from dataclasses import dataclass

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

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


def create_missing(admin: AdminClient, names: tuple[str, ...], partitions: int, replication: int) -> None:
    """Create the topics that are not there yet. Raises KafkaException where the broker refuses."""
    wanted = [NewTopic(name, num_partitions=partitions, replication_factor=replication) for name in names]
    future: Future[None]
    for name, future in admin.create_topics(wanted, operation_timeout=30).items():
        try:
            future.result()
            log.info("topic created", topic=name, partitions=partitions)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
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
