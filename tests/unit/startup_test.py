import threading

from confluent_kafka import KafkaError, KafkaException

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.startup import once_all_is_up


def test_a_role_waits_for_what_is_not_up_yet() -> None:
    """Postgres and then Kafka are away at first; what has to be prepared is tried again until both let it through."""
    away = [OutsideUnavailable("postgres", "refused"), KafkaException(KafkaError(KafkaError._TRANSPORT))]

    def prepare() -> None:
        if away:
            raise away.pop(0)

    assert once_all_is_up(prepare, threading.Event())
    assert not away


def test_a_role_that_is_told_to_stop_while_waiting_does_not_serve() -> None:
    """A stop in the middle of the wait ends it, and says that nothing was prepared."""
    stop = threading.Event()

    def prepare() -> None:
        stop.set()
        raise OutsideUnavailable("postgres", "refused")

    assert not once_all_is_up(prepare, stop)
