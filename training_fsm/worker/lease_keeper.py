"""Heartbeats: prolong the lease, tell progress, and notice when the run is no longer ours or has moved on."""

import threading
from dataclasses import dataclass
from typing import Protocol

import structlog

from training_fsm.domain.errors import LeaseLost, OutsideUnavailable
from training_fsm.domain.facts import Progress
from training_fsm.domain.run import Run
from training_fsm.store.event_log import Lease

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Taken:
    """Another worker holds the run."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The run left the states that have work: somebody cancelled it."""

    run: Run


@dataclass(frozen=True, slots=True)
class Wished:
    """Somebody wants the training to pause, or to go on for longer, or took such a wish back."""

    run: Run


@dataclass(frozen=True, slots=True)
class SideWorkFailed:
    """A thread beside the main loop could not do its part; the main loop decides what that means."""

    error: Exception


class Leases(Protocol):
    """What the keeper needs of the log."""

    def heartbeat(self, lease: Lease, lease_s: float, progress: Progress | None = None) -> Run:
        """Prolong a lease. Raises LeaseLost where another worker holds it."""
        ...


class LeaseKeeper:
    """A thread that keeps one lease for as long as its block lasts."""

    def __init__(self, leases: Leases, lease: Lease, lease_s: float, every_s: float, news: "Sink") -> None:
        self._leases = leases
        self._lease = lease
        self._lease_s = lease_s
        self._every_s = every_s
        self._news = news
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._wishes: tuple[object, ...] = ()
        self.progress: Progress | None = None
        """What the next heartbeat tells."""

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._done.wait(self._every_s):
            try:
                run = self._leases.heartbeat(self._lease, self._lease_s, self.progress)
            except LeaseLost:
                self._news.put(Taken())
                return
            except OutsideUnavailable as error:
                # Expiry alone takes nothing away: only another claim does, and that needs Postgres too.
                log.warning("no heartbeat", run_id=self._lease.run_id, error=error.words)
                continue
            except Exception as error:  # noqa: BLE001  (without heartbeats the work must not go on)
                self._news.put(SideWorkFailed(error))
                return
            if run.ended:
                self._news.put(Moved(run))
                return
            wishes = (run.pause, run.last_step)
            if wishes != self._wishes:
                self._wishes = wishes
                self._news.put(Wished(run))


class Sink(Protocol):
    """Where news go."""

    def put(self, item: object) -> None:
        """Take one item."""
        ...
