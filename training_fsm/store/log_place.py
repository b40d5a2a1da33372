"""Where the log lies. One that was restored takes no event before it is compared with what had gone out."""

from dataclasses import asdict

import sqlalchemy as sa

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.events import LogRestored
from training_fsm.store import statements as sql
from training_fsm.store.engine import APPEND_LOCK
from training_fsm.store.hash_chain import GENESIS, Envelope

STREAM = "log-restored"
ACTOR = "relay"

_STANDS = sa.text(
    """
    SELECT (SELECT coalesce(max(position), 0) FROM events) AS last_position,
           EXISTS (SELECT FROM log_places WHERE place = log_place()) AS in_place
    """
)
_RESTORED = sa.text("SELECT position, version, hash FROM events WHERE stream = :stream ORDER BY version")
_SETTLE = sa.text(
    "INSERT INTO log_places (place, since) VALUES (log_place(), clock_timestamp()) ON CONFLICT (place) DO NOTHING"
)
_RAISE = sa.text(
    "SELECT setval('events_position_seq', :published) FROM events_position_seq WHERE last_value < :published"
)


def in_place(connection: sa.Connection) -> bool:
    """Whether the log lies where it was compared, and takes events."""
    return bool(connection.execute(_STANDS).one().in_place)


def restored_at(connection: sa.Connection) -> tuple[int, ...]:
    """The positions at which the log says that it was restored, rising."""
    return tuple(row.position for row in connection.execute(_RESTORED, {"stream": STREAM}))


def settle(connection: sa.Connection, published: int) -> LogRestored | None:
    """Let the log take events here, above `published`; the event that says so, where it was restored.

    All in the caller's transaction, except that a raised sequence stays raised. For who leads the relay only. Raises
    OutsideUnavailable where appenders do not pause in time.
    """
    if not _restored(connection, published):
        return None
    try:
        connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": APPEND_LOCK})
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) == "55P03":  # lock not available
            raise OutsideUnavailable("postgres", "appenders did not pause in time") from error
        raise
    last = connection.execute(sql.LAST_POSITION).scalar_one()
    event = LogRestored(last_position=last, published_position=published)
    connection.execute(_SETTLE)
    connection.execute(_RAISE, {"published": published})
    _append(connection, event)
    return event


def _restored(connection: sa.Connection, published: int) -> bool:
    stands = connection.execute(_STANDS).one()
    return published > stands.last_position or not stands.in_place


def _append(connection: sa.Connection, event: LogRestored) -> None:
    earlier = connection.execute(_RESTORED, {"stream": STREAM}).all()
    version, previous = (earlier[-1].version + 1, bytes(earlier[-1].hash)) if earlier else (1, GENESIS)
    envelope = Envelope(
        stream=STREAM,
        version=version,
        type=event.type(),
        schema_version=event.schema_version,
        occurred_at=connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one(),
        from_state=None,
        to_state=None,
        actor=ACTOR,
        causation_id=f"{STREAM}/{version}",
        correlation_id=STREAM,
        payload=event.model_dump_json().encode(),
    )
    row = asdict(envelope) | {"previous_hash": previous, "hash": envelope.hash(previous)}
    connection.execute(sql.INSERT_EVENTS, {name: [value] for name, value in row.items()})
