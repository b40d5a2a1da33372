"""The log as the relay reads it: up to a horizon behind which nothing can appear any more."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa

from training_fsm.domain.events import LogRestored
from training_fsm.ports import StoredEvent
from training_fsm.store import log_place
from training_fsm.store import statements as sql
from training_fsm.store.engine import APPEND_LOCK, RELAY_LEADER_LOCK
from training_fsm.store.errors import domain_errors


class PostgresOutbox:
    """What the relay needs of the log. There is no second table to keep in step."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._restored_at: int | None = None
        """Where the log was restored last, as the last look at the topics saw it."""

    @contextmanager
    def leadership(self) -> Iterator[bool]:
        """Whether this process leads the relay, for as long as the block lasts and its connection lives."""
        with domain_errors(), self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            leads = connection.execute(
                sa.text("SELECT pg_try_advisory_lock(:lock)"), {"lock": RELAY_LEADER_LOCK}
            ).scalar_one()
            try:
                yield bool(leads)
            finally:
                if leads and not connection.invalidated:
                    connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), {"lock": RELAY_LEADER_LOCK})

    def last_position(self) -> int:
        """The highest position that can be seen now; lower ones may still be on their way."""
        with domain_errors(), self._engine.connect() as connection:
            return int(connection.execute(sql.LAST_POSITION).scalar_one())

    def horizon(self) -> int | None:
        """The highest position below which everything is committed; None where appenders did not pause in time.

        Appenders hold the lock shared until they end, so whoever holds it alone sees no one in between.
        """
        with domain_errors():
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.text("SET LOCAL lock_timeout = '500ms'"))
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": APPEND_LOCK})
                    return int(connection.execute(sql.LAST_POSITION).scalar_one())
            except sa.exc.OperationalError as error:
                if getattr(error.orig, "sqlstate", None) == "55P03":  # lock not available
                    return None
                raise

    def read(self, after: int, up_to: int, limit: int, bytes_max: int) -> list[StoredEvent]:
        """Events of positions (after, up_to], in order: at most `limit`, none behind that which fills `bytes_max`."""
        with domain_errors(), self._engine.connect() as connection:
            bounds = {"after": after, "up_to": up_to, "limit": limit, "bytes_max": bytes_max}
            rows = connection.execute(sql.READ_EVENTS, bounds)
            return [StoredEvent(*row) for row in rows]

    def settle(self, published: int) -> LogRestored | None:
        """Let a restored log grow, above `published`; the event that says so, None where it was not restored.

        For who leads only. Raises OutsideUnavailable.
        """
        with domain_errors(), self._engine.begin() as connection:
            return log_place.settle(connection, published)

    def in_place(self) -> bool:
        """Whether the log lies where it was settled: not so after a restore, or once another server took over."""
        with domain_errors(), self._engine.connect() as connection:
            return log_place.in_place(connection)

    def restored_at(self) -> tuple[int, ...]:
        """The positions at which the log was restored, rising."""
        with domain_errors(), self._engine.connect() as connection:
            return log_place.restored_at(connection)

    def remember_topics(self, ids: Mapping[str, str]) -> frozenset[str]:
        """Store the ids of topics and return those whose id was another one.

        After a restore every topic counts as another one: what was read of it since the backup is forgotten.
        """
        if not ids:
            return frozenset()
        with domain_errors(), self._engine.begin() as connection:
            restored_at = max(log_place.restored_at(connection), default=0)
            if restored_at:
                ids = {topic: f"{topic_id}@{restored_at}" for topic, topic_id in ids.items()}
            rows = connection.execute(
                sa.text("SELECT topic, topic_id FROM topics WHERE topic = ANY(:topics) FOR UPDATE"),
                {"topics": list(ids)},
            )
            known: dict[str, str] = {row.topic: row.topic_id for row in rows}
            news = [{"topic": topic, "topic_id": ids[topic]} for topic in ids if known.get(topic) != ids[topic]]
            if news:
                connection.execute(sql.REMEMBER_TOPIC, news)
        # Another orchestrator may have been the first to look since: what this one has seen counts as well.
        restored = self._restored_at not in (None, restored_at)
        self._restored_at = restored_at
        return frozenset(topic for topic in known if restored or known[topic] != ids[topic])

    def relayed_position(self, topic: str, topic_id: str) -> int | None:
        """The copy of the relay's cursor for this incarnation of the topic."""
        with domain_errors(), self._engine.connect() as connection:
            position = connection.execute(sql.RELAYED_POSITION, {"topic": topic, "topic_id": topic_id})
            return position.scalar_one_or_none()

    def remember_relayed(self, topic: str, topic_id: str, position: int) -> None:
        """Keep a copy of the relay's cursor, for when Kafka has forgotten it."""
        with domain_errors(), self._engine.begin() as connection:
            connection.execute(sql.REMEMBER_RELAYED, {"topic": topic, "topic_id": topic_id, "position": position})
