"""How long a message can lie in a topic, as the broker is configured."""

from datetime import timedelta

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.service.housekeeping_service import MessageLifetime

TIMEOUT_S = 10


class TopicLifetime:
    """Implements `housekeeping_service.CommandTopic`."""

    def __init__(self, admin: AdminClient, topic: str) -> None:
        self._admin = admin
        self._topic = topic

    def lifetime(self) -> MessageLifetime | None:
        """How long a message can be read; None where the broker does not tell. Raises OutsideUnavailable.

        A segment goes as a whole once its youngest message is past `retention.ms`, and takes messages for
        `segment.ms`: the oldest can lie for both together.
        """
        resource = ConfigResource(ResourceType.TOPIC, self._topic)
        try:
            (future,) = self._admin.describe_configs([resource], request_timeout=TIMEOUT_S).values()
            entries = {name: entry.value for name, entry in future.result().items()}
        except KafkaException as error:
            raise OutsideUnavailable("kafka", f"settings of {self._topic}: {error.args[0].str()}") from error
        retention_ms, segment_ms = _number(entries.get("retention.ms")), _number(entries.get("segment.ms"))
        if retention_ms is None:
            return None
        if retention_ms < 0 or "delete" not in str(entries.get("cleanup.policy") or "delete"):
            return MessageLifetime(None)
        return MessageLifetime(timedelta(milliseconds=retention_ms + (segment_ms or 0)))


def _number(text: object) -> int | None:
    try:
        return int(str(text))
    except ValueError:
        return None
