"""EVALUATING under a lease: backtest, gate, and registration under an idempotency key."""

from pathlib import Path

from training_fsm.domain import events as e
from training_fsm.domain.events import DataFrozen
from training_fsm.domain.run import Checkpoint
from training_fsm.service.model_lifecycle_service import registration_key
from training_fsm.worker import protocol as p
from training_fsm.worker.session import RunSession, points_at


def evaluate(session: RunSession) -> None:
    """Bring a run from EVALUATING to REGISTERED or REJECTED; what an earlier worker has done is not done again."""
    data = session.run.data
    assert data is not None, "TRAINING freezes the data"
    last = session.run.checkpoints[-1]
    checkpoint = session.outside.artifacts.get(last.artifact, session.folder / "checkpoints")
    if session.run.evaluation is None:
        _backtest(session, data, last, checkpoint)
    evaluation = session.run.evaluation
    assert evaluation is not None, "backtested above"
    points = session.curves(last)
    at_ms = points[-1].timestamp_ms if points else 0
    session.log_metrics(points_at({f"test/{name}": v for name, v in evaluation.metrics.items()}, last.step, at_ms))
    if evaluation.passed:
        _register(session, data, last, checkpoint)
    else:
        verdicts = (*evaluation.gate, *evaluation.validations)
        session.append(e.ModelRejected(failed=tuple(verdict.name for verdict in verdicts if not verdict.passed)))
    session.outside.tracking.close_run(session.open_tracking(), "FINISHED")


def _backtest(session: RunSession, data: DataFrozen, last: Checkpoint, checkpoint: Path) -> None:
    order = p.Evaluate(
        run_id=session.run.run_id,
        request=session.run.request,
        data=data,
        frame=session.outside.artifacts.get(data.artifact, session.folder / "data"),
        checkpoint=checkpoint,
        checkpoint_sha256=last.artifact.sha256,
        folder=session.folder / "report",
    )
    evaluated = session.ask(order, p.Evaluated)
    tracking_run_id = session.open_tracking()
    stored = [session.outside.artifacts.put(tracking_run_id, "report", path) for path in evaluated.report]
    session.append(e.EvaluationFinished(report=stored[-1], **evaluated.model_dump(exclude={"kind", "report"})))


def _register(session: RunSession, data: DataFrozen, last: Checkpoint, checkpoint: Path) -> None:
    if session.run.registration_key is None:
        session.append(e.RegistrationIntended(key=registration_key(session.run)))
    order = p.Package(
        run_id=session.run.run_id,
        request=session.run.request,
        feature_config=session.run.feature_config,
        data=data,
        checkpoint=checkpoint,
        checkpoint_sha256=last.artifact.sha256,
        created_at=data.bounds.test.end,  # the same for every try, so that the folder has the same bytes
        folder=session.folder / "model",
    )
    packaged = session.ask(order, p.Packaged)
    session.append(session.outside.lifecycle.register(session.run, packaged.folder))
