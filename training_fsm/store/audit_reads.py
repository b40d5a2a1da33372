"""The log as the audit reads it: whole, at one moment, in constant memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from training_fsm.service.audit_log import ARTIFACT_EVENTS, LoggedEvent, RecordedHead
from training_fsm.store.errors import domain_errors
from training_fsm.store.reads import EVENT_COLUMNS, PostgresReads, logged_event

_BATCH = 1000

_HEAD_COLUMNS = (
    "state", "version", "token", "worker", "request_id", "model", "symbol", "timeframe", "requested_at", "changed_at",
)  # fmt: skip

_LOGGED = sa.text(
    f"SELECT {EVENT_COLUMNS} FROM events WHERE cast(:stream AS text) IS NULL OR stream = :stream "
    "ORDER BY stream, version"
)

_HEADS = sa.text(
    f"SELECT run_id, last_hash, run::text AS run, {', '.join(_HEAD_COLUMNS)} FROM run_heads WHERE run_id = ANY(:ids)"
)

_LETTERS = sa.text(
    "SELECT letter_id, encode(sha256(message), 'hex') AS digest FROM dead_letters WHERE letter_id = ANY(:ids)"
)

_GONE = sa.text(
    """
    WITH known AS (
        SELECT 'run-' || run_id AS stream, 'the events of a run in ' || state AS words FROM run_heads
        UNION
        SELECT 'run-' || run_id, 'the events of a run that was accepted' FROM commands
        WHERE outcome = 'accepted' AND command_type = 'request_training'
          AND NOT EXISTS (SELECT FROM run_heads WHERE run_heads.run_id = commands.run_id)
        UNION
        SELECT 'command-' || source || '/' || replace(replace(command_id, '%', '%25'), '/', '%2F'), 'a command_refused'
        FROM commands WHERE outcome = 'refused'
        UNION
        SELECT 'letter-' || letter_id, 'a message_dead_lettered' FROM dead_letters
    )
    SELECT stream, words FROM known
    WHERE NOT EXISTS (SELECT FROM events WHERE events.stream = known.stream) ORDER BY stream
    """
)

_WITH_ARTIFACTS = sa.text(
    f"SELECT {EVENT_COLUMNS} FROM events WHERE position > :position AND type = ANY(:types) "
    "AND (cast(:stream AS text) IS NULL OR stream = :stream) ORDER BY position LIMIT :limit"
)


class PostgresAuditSnapshot:
    """Implements `audit_log.AuditSnapshot` on one transaction that sees one moment."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def logged(self, stream: str | None) -> Iterator[LoggedEvent]:
        """Every event, or those of one stream, by stream and version, through a cursor of the server."""
        options = {"stream_results": True, "yield_per": _BATCH}
        for row in self._connection.execute(_LOGGED, {"stream": stream}, execution_options=options):
            yield logged_event(row)

    def heads(self, run_ids: Sequence[str]) -> Mapping[str, RecordedHead]:
        """The heads of these runs; those that are not there are left out."""
        rows = self._connection.execute(_HEADS, {"ids": list(run_ids)})
        return {
            row.run_id: RecordedHead(
                {name: getattr(row, name) for name in _HEAD_COLUMNS}, bytes(row.last_hash), row.run
            )
            for row in rows
        }

    def letter_digests(self, letter_ids: Sequence[str]) -> Mapping[str, str]:
        """sha256 of the messages kept for these letters."""
        rows = self._connection.execute(_LETTERS, {"ids": list(letter_ids)})
        return {row.letter_id: row.digest for row in rows}

    def streams_gone(self) -> Sequence[tuple[str, str]]:
        """Streams without any event that another table knows of, with what it says."""
        return [(row.stream, row.words) for row in self._connection.execute(_GONE)]


class PostgresAuditLog(PostgresReads):
    """Implements `audit_log.AuditLog`."""

    @contextmanager
    def snapshot(self) -> Iterator[PostgresAuditSnapshot]:
        """The log as of now, unchanged while it is read."""
        with domain_errors(), self._engine.connect() as connection:
            snapshot = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with snapshot.begin():
                yield PostgresAuditSnapshot(snapshot)

    def with_artifacts(self, stream: str | None, after_position: int, limit: int) -> Sequence[LoggedEvent]:
        """Events behind a position that name a stored file."""
        values = {"stream": stream, "position": after_position, "limit": limit, "types": list(ARTIFACT_EVENTS)}
        with domain_errors(), self._engine.connect() as connection:
            return [logged_event(row) for row in connection.execute(_WITH_ARTIFACTS, values)]
