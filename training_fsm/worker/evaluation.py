"""EVALUATING under a lease: backtest, gate, contest, and registration under an idempotency key."""

from pathlib import Path

import structlog

from training_fsm.client.model_folder import read_record
from training_fsm.domain import events as e
from training_fsm.domain.errors import ChampionMoved, ParentMissing
from training_fsm.domain.facts import Failure, ModelRef
from training_fsm.service.model_lifecycle_service import record_of, registration_key
from training_fsm.store.event_log import Promotion
from training_fsm.worker import protocol as p
from training_fsm.worker.session import RunSession, points_at

log = structlog.get_logger()


def evaluate(session: RunSession) -> None:
    """Bring a run from EVALUATING to REGISTERED or REJECTED; what an earlier worker has done is not done again.

    A challenger that beat a champion who is champion no more meets the new one.
    """
    last = session.run.checkpoints[-1]
    checkpoint = session.outside.artifacts.get(last.artifact, session.folder / "checkpoints")
    while not session.run.ended:
        if session.run.evaluation is None or _is_stale(session, session.run.evaluation):
            _backtest(session, checkpoint)
        evaluation = session.run.evaluation
        assert evaluation is not None, "backtested above"
        points = session.curves(last)
        at_ms = points[-1].timestamp_ms if points else 0
        session.log_metrics(points_at({f"test/{name}": v for name, v in evaluation.metrics.items()}, last.step, at_ms))
        if not evaluation.passed and session.run.overridden is None:
            session.append(e.ModelRejected(failed=evaluation.failed))
            return
        try:
            _register(session, evaluation, checkpoint)
        except ChampionMoved as error:
            log.info("judged again", run_id=session.run.run_id, reason=str(error))


def _is_stale(session: RunSession, evaluation: e.EvaluationFinished) -> bool:
    """Whether somebody else became champion since the contest that it tells of."""
    contest = evaluation.contest
    return contest is not None and session.outside.log.champion(session.run.model).stream_version != (
        contest.stream_version
    )


def _backtest(session: RunSession, checkpoint: Path) -> None:
    record = record_of(session.run)
    opponent, stream_version = _opponent(session) if record.request.evaluation.champion is not None else (None, 0)
    order = p.Evaluate(
        record=record,
        frame=session.outside.artifacts.get(record.data.artifact, session.folder / "data"),
        checkpoint=checkpoint,
        opponent=opponent,
        stream_version=stream_version,
        folder=session.folder / "report",
    )
    evaluated = session.ask(order, p.Evaluated)
    tracking_run_id = session.open_tracking()
    stored = [session.outside.artifacts.put(tracking_run_id, "report", path) for path in evaluated.report]
    session.append(e.EvaluationFinished(report=stored[-1], **dict(evaluated.judgement)))


def _opponent(session: RunSession) -> tuple[p.Opponent | None, int]:
    """The champion with its last checkpoint, and the version of the stream that names it."""
    outside = session.outside
    champion = outside.log.champion(session.run.model)
    if champion.promoted is None:
        return None, champion.stream_version
    model = ModelRef(name=champion.promoted.name, version=champion.promoted.version)
    folder = session.folder / f"champion-{model.version}"
    found = outside.lifecycle.find_parent(f"models:/{model}", folder, outside.log.registered)
    record = read_record(found.path)
    if record is None:
        words = f"champion {model} holds no training.json"
        raise ParentMissing(Failure(kind="parent_missing", words=words, service="mlflow"))
    checkpoint = outside.artifacts.get(record.checkpoint, folder.with_name(f"{folder.name}-checkpoint"))
    return p.Opponent(model=model, record=record, checkpoint=checkpoint), champion.stream_version


def _register(session: RunSession, evaluation: e.EvaluationFinished, checkpoint: Path) -> None:
    if session.run.registration_key is None:
        session.append(e.RegistrationIntended(key=registration_key(session.run)))
    record = record_of(session.run)
    order = p.Package(
        record=record,
        checkpoint=checkpoint,
        created_at=record.data.bounds.test.end,  # the same for every try, so that the folder has the same bytes
        folder=session.folder / "model",
    )
    packaged = session.ask(order, p.Packaged)
    registered = session.outside.lifecycle.register(session.run, packaged.folder)
    session.append(registered, promotion=_promotion(session, registered, evaluation))


def _promotion(
    session: RunSession, registered: e.ModelRegistered, evaluation: e.EvaluationFinished
) -> Promotion | None:
    contest = evaluation.contest
    if contest is None or "champion" in evaluation.failed:  # an overridden rejection makes no champion
        return None
    promoted = e.ChampionPromoted(
        name=registered.name,
        version=registered.version,
        digest=registered.digest,
        run_id=session.run.run_id,
        supersedes=contest.champion.version if contest.champion is not None else None,
    )
    return Promotion(promoted, contest.stream_version)
