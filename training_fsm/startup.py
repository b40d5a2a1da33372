"""What a role does before it serves: wait for what is not up yet, and refuse a database of another version."""

import threading
from collections.abc import Callable

import sqlalchemy as sa
import structlog
from confluent_kafka import KafkaException

from training_fsm.domain.errors import OutsideUnavailable, TrainingFsmError
from training_fsm.store.migrate import pending

log = structlog.get_logger()

PAUSE_S_MAX = 5.0


class SchemaBehind(TrainingFsmError):
    """The database is not at this version's schema; `training-fsm migrate` brings it there."""

    def __init__(self) -> None:
        super().__init__("the database is not at this version's schema: run `training-fsm migrate`")


def once_all_is_up(prepare: Callable[[], None], stop: threading.Event) -> bool:
    """Call `prepare` until Postgres and Kafka let it through; False where told to stop before."""
    pause_s = 0.2
    while not stop.is_set():
        try:
            prepare()
        except (OutsideUnavailable, KafkaException) as error:
            log.warning("waiting", error=str(error))
            stop.wait(pause_s)
            pause_s = min(pause_s * 2, PAUSE_S_MAX)
        else:
            return True
    return False


def require_schema(engine: sa.Engine) -> None:
    """Raises SchemaBehind, OutsideUnavailable."""
    if pending(engine):
        raise SchemaBehind
