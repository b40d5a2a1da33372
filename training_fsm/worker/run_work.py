"""A worker's work on one claimed run, and what becomes of everything that can go wrong in it."""

import random
import shutil
import traceback

import structlog

from training_fsm.domain.decide import failed
from training_fsm.domain.errors import OutsideUnavailable, WithFailure
from training_fsm.domain.facts import Failure
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.worker.evaluation import evaluate
from training_fsm.worker.look_up import look_up_features, resolve_parent
from training_fsm.worker.reconciler import TRACKING_STATUS
from training_fsm.worker.session import RunSession, StopWorkError, WorkFailedError
from training_fsm.worker.training import train

log = structlog.get_logger()


def work_on(session: RunSession) -> Run:
    """Work until the run has ended or cannot go on here; the run as this worker last knew it.

    Raises OutsideUnavailable where Postgres stays away for `outage_patience_s` when a failure is to be recorded: the
    lease then runs out.
    """
    try:
        with session.keeper:
            _refuse_hopeless(session)
            if session.run.state is State.REQUESTED:
                resolve_parent(session)
            if session.run.looks_up:
                look_up_features(session)
            if session.run.state is State.TRAINING:
                train(session)
            if session.run.state is State.EVALUATING:
                evaluate(session)
    except StopWorkError as reason:
        log.info("work stops", run_id=session.run.run_id, reason=str(reason))
    except WorkFailedError as error:
        _record(session, error.failure, passing=error.passing)
    except WithFailure as error:
        _record(session, error.failure, passing=False)
    except OutsideUnavailable as error:
        away = Failure(kind="outside_unavailable", words=str(error), service=error.service)
        _record(session, away, passing=True)
    except Exception as error:
        log.exception("work failed for a reason that nobody foresaw", run_id=session.run.run_id)
        crashed = Failure(
            kind="worker_crashed", words=f"{type(error).__name__}: {error}", detail=traceback.format_exc(limit=-12)
        )
        _record(session, crashed, passing=True)
    if session.run.ended:
        _tidy(session)
    return session.run


def _refuse_hopeless(session: RunSession) -> None:
    """A run on which one worker after the other died is given up, or it would take every worker down for ever."""
    died, most = session.run.attempts_failed, session.settings.attempts_max
    if died >= most:
        words = f"{died} workers in a row died on this run without progress"
        raise WorkFailedError(Failure(kind="worker_crashed", words=words), passing=False)


def _record(session: RunSession, failure: Failure, *, passing: bool) -> None:
    log.warning("work failed", run_id=session.run.run_id, failure=failure.words, detail=failure.detail, passing=passing)
    now, policy = session.now(), session.settings.policy
    try:
        session.append(*failed(session.run, failure, passing=passing, now=now, policy=policy, jitter=random.random()))
    except StopWorkError as reason:
        log.info("work stops", run_id=session.run.run_id, reason=str(reason))


def _tidy(session: RunSession) -> None:
    """An ended run's files lie in the artifact store: its spool goes, and its tracking run ends."""
    if session.tracking_run_id is not None:
        try:
            session.outside.tracking.close_run(session.tracking_run_id, TRACKING_STATUS[session.run.state])
        except OutsideUnavailable as error:
            log.warning("tracking run left open", run_id=session.run.run_id, error=error.words)
    shutil.rmtree(session.folder, ignore_errors=True)
