"""What housekeeping reads and records in Postgres."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

from training_fsm.domain.facts import Artifact
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.service.audit_log import RUN_STREAM, LoggedEvent
from training_fsm.service.janitor_service import ReleasedFile
from training_fsm.service.stored_files import FILE_EVENTS
from training_fsm.store.engine import HOUSEKEEPING_LOCK
from training_fsm.store.errors import domain_errors
from training_fsm.store.reads import EVENT_COLUMNS, PostgresReads, logged_event

_BATCH = 1000
_PRUNED_AT_ONCE = 10_000

_CANDIDATES = sa.text(
    """
    SELECT run_id FROM run_heads
    WHERE state = ANY(:states)
      AND (state = ANY(:ended)
           OR (SELECT count(*) FROM checkpoints WHERE checkpoints.run_id = run_heads.run_id) > :checkpoints)
    ORDER BY run_id
    """
)

_RUN = sa.text("SELECT run::text FROM run_heads WHERE run_id = :run_id")

_RUN_FILES = sa.text(
    f"SELECT {EVENT_COLUMNS} FROM events WHERE stream = :stream AND version <= :version "
    "AND (type = ANY(:types) OR to_state IS DISTINCT FROM from_state) ORDER BY version"
)

_FILE_EVENTS = sa.text(f"SELECT {EVENT_COLUMNS} FROM events WHERE type = ANY(:types) ORDER BY stream, version")

_TO_DELETE = sa.text(
    "SELECT run_id, version, uri, sha256, size_bytes FROM released_files WHERE deleted_at IS NULL "
    "ORDER BY released_at, run_id, uri"
)

_DELETED = sa.text(
    "UPDATE released_files SET deleted_at = clock_timestamp() "
    "WHERE run_id = :run_id AND uri = :uri AND version = :version AND deleted_at IS NULL"
)

_OLD_COMMANDS = sa.text("SELECT count(*) FROM commands WHERE received_at < :before")

_PRUNE_COMMANDS = sa.text(
    """
    DELETE FROM commands WHERE (source, command_id) IN (
        SELECT source, command_id FROM commands WHERE received_at < :before ORDER BY received_at LIMIT :limit
    )
    """
)


class PostgresHousekeeping(PostgresReads):
    """Implements `housekeeping_service.HousekeepingStore`."""

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other pass is at work, for as long as the block lasts and its connection lives."""
        with domain_errors(), self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            lock = {"lock": HOUSEKEEPING_LOCK}
            alone = bool(connection.execute(sa.text("SELECT pg_try_advisory_lock(:lock)"), lock).scalar_one())
            try:
                yield alone
            finally:
                if alone and not connection.invalidated:
                    connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), lock)

    def candidates(self, states: Sequence[State], ended: Sequence[State], checkpoints: int) -> Sequence[str]:
        """Ids of the runs in `states` that have more checkpoints than these, or have ended as one of `ended`."""
        values = {
            "states": [state.value for state in states],
            "ended": [state.value for state in ended],
            "checkpoints": checkpoints,
        }
        with domain_errors(), self._engine.connect() as connection:
            return tuple(connection.execute(_CANDIDATES, values).scalars())

    def run_files(self, run_id: str) -> tuple[Run, Sequence[LoggedEvent]]:
        """A run, and those of its events up to that version that name or release files or change its state."""
        with domain_errors(), self._engine.connect() as connection:
            run = Run.model_validate_json(connection.execute(_RUN, {"run_id": run_id}).scalar_one())
            values = {"stream": RUN_STREAM + run_id, "version": run.version, "types": list(FILE_EVENTS)}
            return run, tuple(logged_event(row) for row in connection.execute(_RUN_FILES, values))

    def file_events(self) -> Iterator[LoggedEvent]:
        """Every event that names or releases files, at one moment, by stream and version."""
        options = {"stream_results": True, "yield_per": _BATCH}
        with domain_errors(), self._engine.connect() as connection:
            rows = connection.execute(_FILE_EVENTS, {"types": list(FILE_EVENTS)}, execution_options=options)
            for row in rows:
                yield logged_event(row)

    def to_delete(self) -> Sequence[ReleasedFile]:
        """Files that were released and not recorded as deleted, the longest released first."""
        with domain_errors(), self._engine.connect() as connection:
            return tuple(
                ReleasedFile(
                    row.run_id, row.version, Artifact(uri=row.uri, sha256=row.sha256, size_bytes=row.size_bytes)
                )
                for row in connection.execute(_TO_DELETE)
            )

    def deleted(self, file: ReleasedFile) -> None:
        """Record that a file is deleted; nothing where it was released anew meanwhile."""
        values = {"run_id": file.run_id, "uri": file.artifact.uri, "version": file.version}
        with domain_errors(), self._engine.begin() as connection:
            connection.execute(_DELETED, values)

    def old_commands(self, before: datetime) -> int:
        """How many commands came before a time."""
        with domain_errors(), self._engine.connect() as connection:
            return int(connection.execute(_OLD_COMMANDS, {"before": before}).scalar_one())

    def prune_commands(self, before: datetime) -> int:
        """Forget the commands that came before a time, some at once; how many there were."""
        pruned = 0
        while True:
            with domain_errors(), self._engine.begin() as connection:
                values = {"before": before, "limit": _PRUNED_AT_ONCE}
                gone = connection.execute(_PRUNE_COMMANDS, values).rowcount
            pruned += gone
            if gone < _PRUNED_AT_ONCE:
                return pruned
