"""One claim of one run: what is known of it, how facts are appended, and the one queue through which news come."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ParamSpec, TypeVar

import structlog
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from training_fsm.domain import events as e
from training_fsm.domain.changes import leaves
from training_fsm.domain.errors import ArtifactDamaged, LeaseLost, OutsideUnavailable, TransitionRefused
from training_fsm.domain.facts import Failure
from training_fsm.domain.run import Checkpoint, Run
from training_fsm.ports import Artifacts, Cause, Tracking
from training_fsm.service.conflicts import on_conflict_again
from training_fsm.service.model_lifecycle_service import ModelLifecycleService
from training_fsm.settings import Settings
from training_fsm.store.event_log import Lease, PostgresEventLog, Promotion
from training_fsm.worker import protocol as p
from training_fsm.worker.child_process import ChildDied, ChildProcess
from training_fsm.worker.lease_keeper import LeaseKeeper, Moved, SideWorkFailed, Taken
from training_fsm.worker.uploads import metric_points

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R", bound=p.Reply)
T = TypeVar("T")


class StopWorkError(Exception):
    """The run is no longer ours to work on: taken, cancelled, or this worker is to stop."""


class WorkFailedError(Exception):
    """The work cannot go on; `passing` says whether another try may help."""

    def __init__(self, failure: Failure, *, passing: bool) -> None:
        super().__init__(failure.words)
        self.failure, self.passing = failure, passing


@dataclass(frozen=True, slots=True)
class Outside:
    """The services around a worker."""

    log: PostgresEventLog
    tracking: Tracking
    artifacts: Artifacts
    lifecycle: ModelLifecycleService


class RunSession:
    """A run under a lease, and the child that works on it."""

    def __init__(
        self,
        outside: Outside,
        settings: Settings,
        claimed: tuple[Run, Lease],
        child: ChildProcess,
        news: "queue.SimpleQueue[object]",
        stop: threading.Event,
    ) -> None:
        self.outside = outside
        self.settings = settings
        self.run, self.lease = claimed
        self.child = child
        self.news = news
        self._stop = stop
        self.folder = settings.spool / self.run.run_id
        """The run's spool on this machine; gone when the run has ended."""
        every_s = min(settings.heartbeat_s, settings.lease_s / 3)
        self.keeper = LeaseKeeper(outside.log, self.lease, settings.lease_s, every_s, news)
        self._cause = Cause(self.lease.worker, f"claim-{self.run.run_id}-{self.lease.token}", self.run.run_id)
        self.tracking_run_id: str | None = None
        self._stop_ordered = False

    def append(self, *events: e.Event, promotion: Promotion | None = None) -> None:
        """Append facts under the lease; an outage of Postgres is waited out, meanwhile the child trains on.

        Raises StopWorkError where the run is no longer ours, or has moved on, ChampionMoved where a promotion comes too
        late: then nothing was appended.
        """
        try:
            self.run = self._patiently(self._append_again, events, promotion)
        except LeaseLost as error:
            raise StopWorkError(str(error)) from error
        except TransitionRefused as error:
            self.refresh()
            raise StopWorkError(f"the run moved on to {self.run.state.value}: {error}") from error
        for event in events:
            log.info(event.type(), run_id=self.run.run_id, state=self.run.state.value)

    @on_conflict_again
    def _append_again(self, events: Sequence[e.Event], promotion: Promotion | None) -> Run:
        return self.outside.log.append_fenced(self.lease, events, self._cause, self.run.version, promotion)

    def now(self) -> datetime:
        """The database's clock; an outage of Postgres is waited out as by `append`. Raises OutsideUnavailable."""
        return self._patiently(self.outside.log.now)

    def _patiently(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Try for as long as there is patience for outages, and until this worker is to stop."""
        retrying = Retrying(
            retry=retry_if_exception_type(OutsideUnavailable),
            wait=wait_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(self.settings.outage_patience_s) | stop_when_event_set(self._stop),
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )
        return retrying(call, *args, **kwargs)

    @property
    def stopping(self) -> bool:
        """This worker is to end."""
        return self._stop.is_set()

    def refresh(self) -> None:
        """Take in what others have added to the run since. Raises OutsideUnavailable."""
        self.run = self.outside.log.load(self.run.run_id) or self.run

    def next(self, *, child_owes: bool = True, training: bool = False) -> object:
        """The next news of the work itself; a child that owes nothing may be silent.

        Where this worker is to stop, a child that is training is told to leave a checkpoint, once; any other work is
        left at once, since another worker repeats it.

        Raises StopWorkError where the run is no longer ours or is left, WorkFailedError where the child cannot go on,
        and what an upload failed with.
        """
        silent_since = time.monotonic()
        while True:
            if self.stopping and not training:
                raise StopWorkError("told to stop")
            if self.stopping and not self._stop_ordered:
                self._stop_ordered = True
                self.child.order(p.Stop())
            try:
                item = self.news.get(timeout=0.2)
            except queue.Empty:
                if child_owes and time.monotonic() - silent_since > self.settings.child_silence_s:
                    words = f"the training process said nothing for {self.settings.child_silence_s:g} s"
                    hung = Failure(kind="worker_crashed", words=words, detail=self.child.standstill() or None)
                    raise WorkFailedError(hung, passing=True) from None
                continue
            match item:
                case Taken():
                    raise StopWorkError("another worker holds the run")
                case Moved(run=run):
                    self.run = run
                    raise StopWorkError(f"the run moved on to {run.state.value}")
                case ChildDied(last_lines=lines):
                    crashed = Failure(kind="worker_crashed", words=item.words(), detail=lines or None)
                    raise WorkFailedError(crashed, passing=True)
                case p.Failed(failure=failure, passing=passing):
                    raise WorkFailedError(failure, passing=passing)
                case SideWorkFailed(error=error):
                    raise error
                case _:
                    return item

    def ask(self, order: p.Order, reply: type[R]) -> R:
        """Give an order and wait for the reply to it."""
        self.child.order(order)
        return self.wait_for(reply)

    def wait_for(self, reply: type[R]) -> R:
        """The next reply of this kind; what comes before it is passed over."""
        while True:
            item = self.next()
            if isinstance(item, reply):
                return item

    def open_tracking(self) -> str:
        """The tracking run, found or made once per session."""
        if self.tracking_run_id is None:
            run, (request, feature_config) = self.run, self.run.plan
            tags = {
                "training_fsm.model": request.model,
                "training_fsm.symbol": request.symbol,
                "training_fsm.timeframe": request.timeframe.value,
                "training_fsm.feature_config_hash": feature_config.hash,
                "training_fsm.worker": self.lease.worker,
            }
            fields = leaves(request.model_dump(mode="json", exclude={"features"}))
            parameters = {name: str(value) for name, value in fields.items() if value is not None}
            self.tracking_run_id = self.outside.tracking.open_run(run.run_id, parameters, tags)
        return self.tracking_run_id

    def curves(self, checkpoint: Checkpoint) -> tuple[p.CurvePoint, ...]:
        """The curve points that were stored with a checkpoint; a damaged file of them costs no run."""
        if checkpoint.curves is None:
            return ()
        try:
            path = self.outside.artifacts.get(checkpoint.curves, self.folder / "checkpoints")
        except ArtifactDamaged as error:
            log.warning("curves left out", run_id=self.run.run_id, step=checkpoint.step, error=str(error))
            return ()
        return p.Curves.model_validate_json(path.read_bytes()).points

    def log_metrics(self, points: Sequence[p.CurvePoint]) -> None:
        """Log points to the tracking run; a repeat with the same time adds nothing."""
        self.outside.tracking.log_metrics(self.open_tracking(), metric_points(points))


def points_at(values: dict[str, float], step: int, timestamp_ms: int) -> list[p.CurvePoint]:
    """One point for each value. The time is the caller's: who repeats the work must give the same one."""
    return [
        p.CurvePoint(name=name, value=value, step=step, timestamp_ms=timestamp_ms) for name, value in values.items()
    ]
