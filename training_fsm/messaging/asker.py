"""Asks ingest off the polling thread, as soon as a question is stored and again by timer."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol

import structlog

from training_fsm.domain.errors import Conflict, OutsideUnavailable
from training_fsm.domain.run import Run

log = structlog.get_logger()

AT_ONCE = 8
IDLE_S = 1.0


class Questions(Protocol):
    """What the asker needs of the orchestration service."""

    def due_feature_requests(self, limit: int, hold_s: float) -> Sequence[Run]:
        """Runs whose question, or whose deadline, is due."""
        ...

    def ask(self, run: Run, now: datetime) -> None:
        """Ask ingest, or see that the deadline has passed, and record what came of it."""
        ...


class Clock(Protocol):
    """The database's clock: deadlines are judged by the one that set them."""

    def now(self) -> datetime:
        """The time."""
        ...


class Asker:
    """A few questions to ingest at once; a question that failed comes back when it is due again."""

    def __init__(self, questions: Questions, clock: Clock, hold_s: float) -> None:
        self._questions = questions
        self._clock = clock
        self._hold_s = hold_s
        self.wake = threading.Event()
        """Set by whoever has just stored a question in this process."""

    def run(self, stop: threading.Event) -> None:
        """Ask until told to stop."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ask") as pool:
            while not stop.is_set():
                try:
                    due = self._questions.due_feature_requests(AT_ONCE, self._hold_s)
                    now = self._clock.now() if due else None
                except OutsideUnavailable as error:
                    log.warning("waiting", service=error.service, error=error.words)
                    stop.wait(IDLE_S)
                    continue
                if now is None:
                    self.wake.wait(IDLE_S)
                    self.wake.clear()
                    continue
                for done in [pool.submit(self._ask, run, now) for run in due]:
                    done.result()

    def _ask(self, run: Run, now: datetime) -> None:
        try:
            self._questions.ask(run, now)
        except (Conflict, OutsideUnavailable) as error:
            # Nothing is lost: the question is due again when the hold on it ends.
            log.warning("question comes back later", run_id=run.run_id, error=str(error))
        except Exception:
            # One run's surprise must not end the questions of the others.
            log.exception("question cannot be asked", run_id=run.run_id)
