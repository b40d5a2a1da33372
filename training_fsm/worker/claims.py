"""Runs to claim: woken by the database when one becomes claimable, with a poll behind it."""

import time
from types import TracebackType
from typing import Self

import psycopg
import structlog
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

from training_fsm.domain.errors import TrainingFsmError
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.store.engine import NETWORK
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.store.unit_of_work import WORK_CHANNEL

log = structlog.get_logger()


class UnknownRun(TrainingFsmError):
    """The run that this worker is for is not in the log."""


class Claims:
    """Takes runs for one worker."""

    def __init__(
        self, event_log: PostgresEventLog, database_url: str, worker: str, lease_s: float, run_id: str | None
    ) -> None:
        self._event_log = event_log
        self._dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._worker = worker
        self._lease_s = lease_s
        self._run_id = run_id
        self._connection: psycopg.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def take(self) -> tuple[Run, Lease] | None:
        """Claim a run, if there is one. Raises OutsideUnavailable."""
        return self._event_log.claim(self._worker, self._lease_s, self._run_id)

    def ended(self) -> State | None:
        """The end of the one run that is wanted, where it has ended: there is nothing to wait for.

        Raises UnknownRun, OutsideUnavailable.
        """
        if self._run_id is None:
            return None
        run = self._event_log.load(self._run_id)
        if run is None:
            raise UnknownRun(f"there is no run {self._run_id}")
        return run.state if run.ended else None

    def wait(self, at_most_s: float) -> None:
        """Until a run becomes claimable, or the time is over; what was notified meanwhile is one wake-up."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(make_conninfo(self._dsn, **NETWORK), autocommit=True)
                self._connection.execute(f"LISTEN {WORK_CHANNEL}")
                return  # something may have come before we listened
            for _ in self._connection.notifies(timeout=at_most_s, stop_after=1):
                return
        except psycopg.OperationalError as error:
            log.warning("not listening", error=str(error).strip())
            self._connection = None
            time.sleep(at_most_s)
