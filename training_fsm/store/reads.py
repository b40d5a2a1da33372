"""Reading runs, their history and the fate of commands, for people."""

from collections.abc import Iterator, Sequence
from datetime import datetime

import sqlalchemy as sa

from training_fsm.domain.facts import Progress
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import UtcTime
from training_fsm.service.audit_log import RUN_STREAM, LoggedEvent
from training_fsm.store.errors import domain_errors
from training_fsm.store.hash_chain import Envelope

HISTORY_BATCH = 500

EVENT_COLUMNS = (
    "position, stream, version, type, schema_version, occurred_at, from_state, to_state, "
    "actor, causation_id, correlation_id, payload::text AS payload, previous_hash, hash"
)

_RUNS = """
    SELECT run_id, state, version, token, worker, lease_until, requested_at, changed_at, run::text AS run,
           progress::text AS progress, clock_timestamp() AS read_at,
           (SELECT occurred_at FROM events
            WHERE stream = 'run-' || run_heads.run_id AND to_state IS DISTINCT FROM from_state
            ORDER BY events.version DESC LIMIT 1) AS since
    FROM run_heads
"""

_LIST = sa.text(
    f"{_RUNS} WHERE cast(:state AS text) IS NULL OR state = :state ORDER BY requested_at DESC, run_id LIMIT :limit"
)
_ONE = sa.text(f"{_RUNS} WHERE run_id = :run_id")

_MATCHING = sa.text(
    "SELECT run_id FROM run_heads WHERE left(run_id, length(:beginning)) = :beginning ORDER BY run_id LIMIT :limit"
)

_HISTORY = sa.text(
    f"SELECT {EVENT_COLUMNS} FROM events WHERE stream = :stream AND version > :version ORDER BY version LIMIT :limit"
)

_COMMAND = sa.text(
    "SELECT source, command_id, command_type, run_id, outcome, reason, received_at FROM commands "
    "WHERE source = :source AND command_id = :command_id"
)


class RunSummary(Model):
    """A run as a list shows it."""

    run_id: str
    state: State
    since: UtcTime | None
    """When it entered its state."""
    model: str
    symbol: str
    timeframe: str
    checkpoint_step: int | None
    """Environment step of the newest checkpoint."""
    last_step: int | None
    """Environment step at which the training ends; unknown while a continued run looks for its parent."""
    model_version: int | None
    """Version in the model registry."""
    failure: str | None
    worker: str | None
    lease_until: UtcTime | None
    requested_at: UtcTime
    changed_at: UtcTime
    version: int
    progress: Progress | None
    """What the last heartbeat of a training said; newer than the newest checkpoint, and no part of the log."""


class RunDetails(RunSummary):
    """A run with everything that its events add up to."""

    token: int
    read_at: UtcTime
    """The database's clock when this was read."""
    run: Run


class CommandOutcome(Model):
    """What became of a command."""

    source: str
    command_id: str
    command_type: str
    run_id: str | None
    outcome: str
    """`accepted` or `refused`."""
    reason: str | None
    received_at: UtcTime


def logged_event(row: "sa.Row[tuple[object, ...]]") -> LoggedEvent:
    """A row of EVENT_COLUMNS, with the hash that it should have."""
    columns = dict(row._mapping)
    previous_hash, stored_hash = bytes(columns.pop("previous_hash")), bytes(columns.pop("hash"))
    position = columns.pop("position")
    envelope = Envelope(**columns | {"payload": columns["payload"].encode()})
    return LoggedEvent(
        position=position,
        previous_hash=previous_hash,
        hash=stored_hash,
        computed_hash=envelope.hash(previous_hash),
        **columns,
    )


class PostgresReads:
    """What people ask about runs; every method raises OutsideUnavailable where Postgres does not answer."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def matching(self, beginning: str, limit: int = 10) -> Sequence[str]:
        """The run of exactly this id, else the ids that begin so, at most `limit`."""
        with domain_errors(), self._engine.connect() as connection:
            if connection.execute(sa.text("SELECT 1 FROM run_heads WHERE run_id = :id"), {"id": beginning}).first():
                return (beginning,)
            return tuple(connection.execute(_MATCHING, {"beginning": beginning, "limit": limit}).scalars())

    def runs(self, state: State | None, limit: int) -> Sequence[RunSummary]:
        """Runs in a state, or all, the newest request first."""
        with domain_errors(), self._engine.connect() as connection:
            rows = connection.execute(_LIST, {"state": state and state.value, "limit": limit}).all()
        names = RunSummary.model_fields.keys()
        return tuple(RunSummary(**_details(row).model_dump(include=set(names))) for row in rows)

    def run(self, run_id: str) -> RunDetails | None:
        """A run as it stands."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(_ONE, {"run_id": run_id}).one_or_none()
        return None if row is None else _details(row)

    def history(self, run_id: str, after_version: int = 0) -> Iterator[LoggedEvent]:
        """The events of a run behind a version, in order; read in batches."""
        version = after_version
        while True:
            with domain_errors(), self._engine.connect() as connection:
                rows = connection.execute(
                    _HISTORY, {"stream": RUN_STREAM + run_id, "version": version, "limit": HISTORY_BATCH}
                ).all()
            for row in rows:
                yield logged_event(row)
            if len(rows) < HISTORY_BATCH:
                return
            version = rows[-1].version

    def command(self, source: str, command_id: str) -> CommandOutcome | None:
        """What became of a command; None while nobody has read it."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(_COMMAND, {"source": source, "command_id": command_id}).one_or_none()
        return None if row is None else CommandOutcome.model_validate(dict(row._mapping))

    def now(self) -> datetime:
        """The database's clock."""
        with domain_errors(), self._engine.connect() as connection:
            now = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        assert isinstance(now, datetime)
        return now


def _details(row: "sa.Row[tuple[object, ...]]") -> RunDetails:
    columns = dict(row._mapping)
    run = Run.model_validate_json(columns.pop("run"))
    progress = columns.pop("progress")
    return RunDetails(
        **columns,
        model=run.model,
        symbol=run.symbol,
        timeframe=run.timeframe,
        checkpoint_step=run.checkpoints[-1].step if run.checkpoints else None,
        last_step=run.last_step,
        model_version=run.registered.version if run.registered else None,
        failure=run.failure.words if run.failure else None,
        progress=None if progress is None else Progress.model_validate_json(progress),
        run=run,
    )
