"""The event store on Postgres: units of work, claims, heartbeats and timers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from training_fsm.domain.errors import Conflict, LeaseLost, OutsideUnavailable
from training_fsm.domain.events import ChampionPromoted, Event, ModelRegistered, RunClaimed
from training_fsm.domain.facts import Progress
from training_fsm.domain.run import Run
from training_fsm.ports import Cause
from training_fsm.service.conflicts import on_conflict_again
from training_fsm.service.model_lifecycle_service import CANDIDATE, CHAMPION
from training_fsm.store import log_place
from training_fsm.store import statements as sql
from training_fsm.store.engine import ALIASES_LOCK
from training_fsm.store.errors import domain_errors
from training_fsm.store.unit_of_work import PostgresUnitOfWork


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a run; every append under it names the token."""

    run_id: str
    token: int
    worker: str


@dataclass(frozen=True, slots=True)
class Champion:
    """Who is champion of a model name, and the version of the stream that says so."""

    promoted: ChampionPromoted | None
    stream_version: int


@dataclass(frozen=True, slots=True)
class Promotion:
    """A wish to become champion; in vain where the model's stream has moved on since `after_version`."""

    event: ChampionPromoted
    after_version: int


class PostgresEventLog:
    """Implements `ports.EventLog`, and what workers need of it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @contextmanager
    def begin(self) -> Iterator[PostgresUnitOfWork]:
        """A unit of work; commits on exit, rolls back on an exception. Raises Conflict, OutsideUnavailable."""
        with domain_errors(), self._engine.begin() as connection:
            unit = PostgresUnitOfWork(connection)
            yield unit
            unit.flush()

    def load(self, run_id: str) -> Run | None:
        """The run as it stands."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(sa.text("SELECT run::text FROM run_heads WHERE run_id = :id"), {"id": run_id})
            text = row.scalar_one_or_none()
        return None if text is None else Run.model_validate_json(text)

    def take_due_feature_requests(self, limit: int, hold_s: float) -> Sequence[Run]:
        """Runs that wait for features and are due, hidden from other askers for `hold_s` seconds."""
        with domain_errors(), self._engine.begin() as connection:
            rows = connection.execute(sql.TAKE_DUE, {"limit": limit, "hold_s": hold_s})
            return [Run.model_validate_json(row.run) for row in rows]

    def next_due_s(self) -> float | None:
        """Seconds until the next run that waits for features is due; None where none waits."""
        with domain_errors(), self._engine.connect() as connection:
            seconds = connection.execute(sql.NEXT_DUE).scalar_one_or_none()
        return None if seconds is None else max(0.0, float(seconds))

    def claim(self, worker: str, lease_s: float, run_id: str | None = None) -> tuple[Run, Lease] | None:
        """Take the longest due run that no live lease holds, as an event; None where there is none.

        `run_id` takes that run and no other. Raises OutsideUnavailable, also where every try lost to another writer.
        """
        try:
            return self._claim_again(worker, lease_s, run_id)
        except Conflict as error:
            raise OutsideUnavailable("postgres", f"no claim got through: {error}") from error

    @on_conflict_again
    def _claim_again(self, worker: str, lease_s: float, run_id: str | None) -> tuple[Run, Lease] | None:
        with self.begin() as unit, domain_errors():
            found = unit.claimable(run_id)
            if found is None:
                return None
            # A token never exceeds its claim's position: above a restore there is none that somebody may still hold.
            token = max(unit.runs([found])[found].token, self._restored_at()) + 1
            claimed = RunClaimed(token=token, worker=worker, lease_s=lease_s)
            run = unit.append(found, [claimed], Cause(worker, f"claim-{found}-{token}", found))
        return run, Lease(found, token, worker)

    def _restored_at(self) -> int:
        with self._engine.connect() as connection:
            return max(log_place.restored_at(connection), default=0)

    def heartbeat(self, lease: Lease, lease_s: float, progress: Progress | None = None) -> Run:
        """Prolong a lease, say how far the work is, and return the run as it stands.

        Raises LeaseLost where another worker holds it.
        """
        with domain_errors(), self._engine.begin() as connection:
            row = connection.execute(
                sql.HEARTBEAT,
                {
                    "run_id": lease.run_id,
                    "token": lease.token,
                    "lease_s": lease_s,
                    "progress": progress.model_dump_json() if progress else None,
                },
            ).one_or_none()
        if row is None:
            raise LeaseLost(f"run {lease.run_id}: token {lease.token} is no longer the run's")
        return Run.model_validate_json(row.run)

    def release(self, lease: Lease) -> None:
        """Give a lease back, so that the run can be claimed at once; nothing where it is another's already."""
        with domain_errors(), self._engine.begin() as connection:
            connection.execute(sql.RELEASE, {"run_id": lease.run_id, "token": lease.token})

    def append_fenced(
        self,
        lease: Lease,
        events: Sequence[Event],
        cause: Cause,
        known_version: int | None = None,
        promotion: Promotion | None = None,
    ) -> Run:
        """Append under a lease. `known_version`, the run's version as the caller knows it, makes a repeat harmless.

        A promotion is stored in the same transaction, or nothing is.

        A commit may succeed although its answer is lost: where the log holds just these events behind the known
        version, they are ours, and nothing is added.

        Raises LeaseLost where another worker holds the run, TransitionRefused where it has moved on (a cancel,
        say), ChampionMoved where the promotion comes too late, Conflict where another writer was first: read again
        and try again.
        """
        with self.begin() as unit:
            run = unit.runs([lease.run_id]).get(lease.run_id)
            if run is None or run.token != lease.token:
                raise LeaseLost(f"run {lease.run_id}: token {lease.token} is no longer the run's")
            if known_version is not None and run.version < known_version:
                raise LeaseLost(f"run {lease.run_id}: the log was restored, and ends before version {known_version}")
            if known_version not in (None, run.version) and unit.holds(lease.run_id, known_version, events):
                return run
            if promotion is not None:
                unit.promote(promotion.event, promotion.after_version, cause)
            return unit.append(lease.run_id, events, cause)

    def champion(self, name: str) -> Champion:
        """Who is champion of a model name, and the version of the stream that says so."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(sql.CHAMPIONS, {"stream": f"model-{name}"}).one_or_none()
        if row is None:
            return Champion(None, 0)
        return Champion(ChampionPromoted.model_validate_json(row.payload), row.version)

    def registered(self, name: str, version: int) -> ModelRegistered | None:
        """What the log says of a version in the registry; None where another installation registered it."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(sql.ONE_REGISTERED, {"name": name, "version": version}).scalar_one_or_none()
        return None if row is None else ModelRegistered.model_validate_json(row)

    def now(self) -> datetime:
        """The database's clock."""
        with domain_errors(), self._engine.connect() as connection:
            now = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        assert isinstance(now, datetime)
        return now

    @contextmanager
    def aliases(self) -> Iterator[Mapping[str, Mapping[str, int]]]:
        """For each alias the version of each model name, as the log has them; empty while another caller is inside.

        Whoever carries them elsewhere inside the block never carries older ones after newer ones. No transaction is
        open meanwhile: MLflow may take its time.
        """
        with domain_errors(), self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            lock = {"lock": ALIASES_LOCK}
            if not connection.execute(sa.text("SELECT pg_try_advisory_lock(:lock)"), lock).scalar_one():
                yield {}
                return
            try:
                candidates = connection.execute(sql.REGISTERED).all()
                promoted = connection.execute(sql.CHAMPIONS, {"stream": None}).all()
                champions = (ChampionPromoted.model_validate_json(row.payload) for row in promoted)
                yield {
                    CANDIDATE: {row.model: row.version for row in candidates},
                    CHAMPION: {champion.name: champion.version for champion in champions},
                }
            finally:
                if not connection.invalidated:
                    connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), lock)
