"""The worker: claims runs one after the other, with a training child that is ready before it is needed."""

import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_models import MlflowModels
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.domain.errors import OutsideUnavailable, TrainingFsmError
from training_fsm.domain.states import State
from training_fsm.logs import bound_everywhere
from training_fsm.observability.pulse import Pulses
from training_fsm.observability.server import observed
from training_fsm.observability.worker import WorkerStatus, observe_worker
from training_fsm.service.model_lifecycle_service import ModelLifecycleService
from training_fsm.settings import Settings
from training_fsm.startup import once_all_is_up, require_schema
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.worker import protocol as p
from training_fsm.worker.child_process import ChildDied, ChildProcess
from training_fsm.worker.claims import Claims
from training_fsm.worker.reconciler import Reconciler
from training_fsm.worker.run_work import work_on
from training_fsm.worker.session import Outside, RunSession

log = structlog.get_logger()

POLL_S = 1.0
_PAUSE_S_FIRST, _PAUSE_S_MAX = 1.0, 30.0


def run_worker(settings: Settings, stop: threading.Event, *, once: bool = False, run_id: str | None = None) -> int:
    """Work until told to stop. `once` does one run, `run_id` or whichever comes first, and ends.

    Returns 0; with `once`, 1 where the run ended here without being judged. Raises SchemaBehind, SettingsWrong,
    ChildUnusable, PortUnusable, and UnknownRun for a `run_id` that is not in the log.
    """
    if (settings.feast_repo is None) == (settings.feast_registry is None):
        raise SettingsWrong("setting feast_repo: expected it or feast_registry, and not both")
    engine = make_engine(settings.database_url, application_name="training-fsm-worker")
    connection = MlflowConnection(settings.mlflow_tracking_uri)
    connection.make_global()
    event_log = PostgresEventLog(engine)
    lifecycle = ModelLifecycleService(MlflowModels(connection))
    tracking = MlflowTracking(connection)
    outside = Outside(event_log, tracking, MlflowArtifacts(connection), lifecycle)
    worker = f"{settings.worker_name}-{os.getpid()}"
    status, pulses = WorkerStatus(worker), Pulses(settings.health_silence_s + settings.outage_patience_s)
    try:
        with (
            observed(settings, observe_worker(engine, status, pulses, settings.lease_s)),
            pulses.watched("main", stop) as watched,
        ):
            if not once_all_is_up(partial(require_schema, engine), watched):
                return 0
            try:
                tracking.warm_up()
            except OutsideUnavailable as error:
                log.warning("mlflow is away, for now", error=error.words)
            with Claims(event_log, settings.database_url, worker, settings.lease_s, run_id) as claims:
                return Supervisor(settings, outside, claims, status).serve(watched, once=once)
    finally:
        engine.dispose()


class ChildUnusable(TrainingFsmError):
    """The training child ends before it can do anything; a restart will not help."""


class _ChildNotReadyError(Exception):
    """A training child ended, or hung, before it could do anything."""

    def __init__(self, words: str, *, ordinary: bool) -> None:
        super().__init__(words)
        self.ordinary = ordinary
        """It ended with an error of its own: nobody killed it, and it did not hang."""


class SettingsWrong(TrainingFsmError):
    """A setting that a worker needs is missing or contradicts another."""


class Supervisor:
    """One training child at a time; after every training a fresh one, so that no run inherits another's state."""

    def __init__(self, settings: Settings, outside: Outside, claims: Claims, status: WorkerStatus) -> None:
        self._settings = settings
        self._outside = outside
        self._claims = claims
        self._status = status
        self._worker = status.worker
        self._log_file = settings.spool / f"child-{status.worker}.log"
        self._reconciler = Reconciler(outside, settings.reconcile_every_s)

    def serve(self, stop: threading.Event, *, once: bool) -> int:
        """Claim and work until told to stop, or, with `once`, for one run."""
        log.info("worker serves", worker=self._worker)
        self._sweep_spool()
        first, pause_s = True, _PAUSE_S_FIRST
        while not stop.is_set():
            try:
                state = self._with_child(stop, once=once)
            except _ChildNotReadyError as error:
                if first and error.ordinary:
                    raise ChildUnusable(str(error)) from error
                log.warning("another child is started", worker=self._worker, error=str(error), pause_s=pause_s)
                stop.wait(pause_s)
                state, pause_s = None, min(2 * pause_s, _PAUSE_S_MAX)
            else:
                pause_s = _PAUSE_S_FIRST
            first = False
            if once and state is not None and state is not State.AWAITING_FEATURES:  # a look-up is not the whole run
                return 0 if state in (State.REGISTERED, State.REJECTED) else 1
        return 0

    def _with_child(self, stop: threading.Event, *, once: bool) -> State | None:
        """Work with a fresh child until a run has used it. Raises _ChildNotReadyError."""
        news: queue.SimpleQueue[object] = queue.SimpleQueue()
        try:
            child = ChildProcess(self._settings, self._log_file, news)
        except (OSError, EOFError) as error:  # the server that forks children may be gone, too: the next try starts it
            words = f"no training process can be started: {type(error).__name__}: {error}"
            raise _ChildNotReadyError(words, ordinary=True) from error
        try:
            if not _ready(child, news, stop, self._settings.child_silence_s):
                return None
            self._status.child_pid = child.pid
            return self._one(child, news, stop, once=once)
        finally:
            self._status.child_pid = None
            child.kill()
            self._log_file.unlink(missing_ok=True)

    def _one(
        self, child: ChildProcess, news: "queue.SimpleQueue[object]", stop: threading.Event, *, once: bool
    ) -> State | None:
        """Wait for runs, and work until one has used the child; None where none did."""
        log.info("ready for a run", worker=self._worker)
        while not stop.is_set() and news.empty():  # only the death of an idle child is news
            try:
                if (ended := self._claims.ended()) is not None:
                    return ended
                claimed = self._claims.take()
            except OutsideUnavailable as error:
                log.warning("waiting", service=error.service, error=error.words)
                stop.wait(POLL_S)
                continue
            if claimed is None:
                self._reconciler.run_if_due()
                self._claims.wait(POLL_S)
                continue
            run, lease = claimed
            log.info("run claimed", run_id=run.run_id, token=lease.token, state=run.state.value)
            state = self._work(RunSession(self._outside, self._settings, claimed, child, news, stop))
            self._release(lease)
            self._reconciler.run()
            if child.used or (once and state is not State.AWAITING_FEATURES):
                return state
        return None

    def _sweep_spool(self) -> None:
        try:
            sweep_spool(self._settings.spool, self._has_ended)
        except OutsideUnavailable as error:
            log.warning("spool swept another time", error=error.words)

    def _has_ended(self, run_id: str) -> bool:
        run = self._outside.log.load(run_id)
        return run is not None and run.ended

    def _work(self, session: RunSession) -> State:
        try:
            with bound_everywhere(run_id=session.run.run_id), self._status.working(session):
                return work_on(session).state
        except OutsideUnavailable as error:
            log.warning("nothing recorded, the lease runs out", run_id=session.run.run_id, error=error.words)
            return session.run.state

    def _release(self, lease: Lease) -> None:
        try:
            self._outside.log.release(lease)
        except OutsideUnavailable as error:
            log.warning("lease runs out by itself", run_id=lease.run_id, error=error.words)


def sweep_spool(spool: Path, has_ended: Callable[[str], bool]) -> None:
    """Remove files of runs that ended while no worker of this machine was looking; others may do so meanwhile."""

    def tell(_: object, path: str, raised: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(raised[1], FileNotFoundError):
            log.warning("spool keeps what it should not", path=path, error=str(raised[1]))

    for folder in spool.glob("*/"):
        if has_ended(folder.name):
            shutil.rmtree(folder, onerror=tell)


def _ready(child: ChildProcess, news: "queue.SimpleQueue[object]", stop: threading.Event, silence_s: float) -> bool:
    """Wait until the child has imported everything; False where told to stop. Raises _ChildNotReadyError."""
    hung_at = time.monotonic() + silence_s
    while not stop.is_set():
        try:
            item = news.get(timeout=0.2)
        except queue.Empty:
            if time.monotonic() > hung_at:
                words = f"the training process was not ready after {silence_s:g} s:\n{child.standstill()}"
                raise _ChildNotReadyError(words, ordinary=False) from None
            continue
        match item:
            case p.Ready():
                return True
            case ChildDied(last_lines=lines):
                words = f"{item.words()} before it was ready:\n{lines}"
                raise _ChildNotReadyError(words, ordinary=item.exit_code >= 0)
            case _:
                raise AssertionError(f"unexpected news: {item}")
    return False
