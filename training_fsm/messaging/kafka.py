"""librdkafka clients, configured in one place: our defaults, then the operator's options, then what delivery needs."""

import time
from collections.abc import Callable

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from training_fsm.settings import Settings

log = structlog.get_logger()

COMMAND_TIMEOUT_S = 20

Options = dict[str, str | int | float | bool]


SAME_ERROR_EVERY_S = 10.0
"""While a broker is away librdkafka says so many times a second; one line in this time is enough."""

_last_said: dict[str, float] = {}


def _on_error(error: KafkaError) -> None:
    code, now = error.name(), time.monotonic()
    if now - _last_said.get(code, -SAME_ERROR_EVERY_S) >= SAME_ERROR_EVERY_S:
        _last_said[code] = now
        log.warning("kafka", error=error.str(), code=code)


def _config(settings: Settings, client: str, defaults: Options, required: Options) -> Options:
    ours: Options = {
        "client.id": f"training-fsm-{client}",
        "topic.metadata.refresh.interval.ms": 10_000,  # a topic made after subscribing is read within ten seconds
        "reconnect.backoff.max.ms": 2_000,
        "log_level": 0,  # what it prints itself is no JSON; the error callback says the same
    }
    return {
        **ours,
        **defaults,
        **settings.kafka_options,
        "bootstrap.servers": settings.bootstrap_servers,
        **required,
    }


def make_admin(settings: Settings) -> AdminClient:
    """A client that asks and tells the broker about topics."""
    return AdminClient(_config(settings, "admin", {}, {}), error_cb=_on_error)


def make_producer(settings: Settings, transactional_id: str) -> Producer:
    """An idempotent producer of transactions; `linger.ms=0`, since a transaction waits for its last message."""
    defaults: Options = {"linger.ms": 0, "transaction.timeout.ms": 30_000, "message.max.bytes": 1_000_000}
    config = _config(settings, "relay", defaults, {"transactional.id": transactional_id})
    return Producer(config, error_cb=_on_error)


def make_command_producer(settings: Settings, on_error: Callable[[KafkaError], None]) -> Producer:
    """An idempotent producer of single messages that all replicas must have; its faults go to `on_error` alone.

    Raises ValueError where librdkafka does not take the settings.
    """
    defaults: Options = {"linger.ms": 0, "message.timeout.ms": COMMAND_TIMEOUT_S * 1000}
    config = _config(settings, "cli", defaults, {"acks": "all", "enable.idempotence": True})
    try:
        return Producer(config, error_cb=on_error)
    except KafkaException as error:
        raise ValueError(f"setting kafka_options: {error.args[0].str()}") from error


def make_consumer(settings: Settings, group: str) -> Consumer:
    """A consumer that reads committed messages from the earliest on and commits when it is told to."""
    defaults: Options = {
        "session.timeout.ms": 6_000,  # a killed orchestrator's partitions move within that time
        "heartbeat.interval.ms": 2_000,
        "fetch.wait.max.ms": 50,  # some brokers do not wake a waiting fetch: this bounds the delay of a message
        "allow.auto.create.topics": False,
    }
    required: Options = {
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    }
    return Consumer(_config(settings, "orchestrator", defaults, required), error_cb=_on_error)
