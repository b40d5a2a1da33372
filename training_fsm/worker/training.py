"""TRAINING under a lease: freeze the data, train from the newest whole checkpoint, store each before it is named."""

from datetime import UTC, datetime
from pathlib import Path

import structlog

from training_fsm.client.artifact_store import same_file
from training_fsm.domain import events as e
from training_fsm.domain.continuation import inheritance
from training_fsm.domain.decide import incomplete
from training_fsm.domain.errors import ArtifactDamaged, ResumeImpossible
from training_fsm.domain.facts import Failure, Fingerprint, Progress, StoredData
from training_fsm.domain.lineage import Inheritance
from training_fsm.domain.run import Checkpoint
from training_fsm.domain.states import State
from training_fsm.worker import protocol as p
from training_fsm.worker.lease_keeper import Wished
from training_fsm.worker.session import RunSession, StopWorkError, WorkFailedError, points_at
from training_fsm.worker.uploads import CheckpointStored, Uploads, UploadsDone

log = structlog.get_logger()


def train(session: RunSession) -> None:
    """Bring a run from TRAINING to EVALUATING, or to a pause, segment by segment.

    Raises what `RunSession.next` and the stores raise.
    """
    if session.run.data is None:
        _freeze(session)
    while session.run.state is State.TRAINING:
        if session.stopping:
            raise StopWorkError("told to stop before training")
        if (wanted := session.run.pause) is not None:
            step = session.run.checkpoints[-1].step if session.run.checkpoints else session.run.first_step
            session.append(e.RunPaused(actor=wanted.actor, why=wanted.why, step=step))
        else:
            _segment(session)


def _segment(session: RunSession) -> None:
    tracking_run_id, data = session.open_tracking(), session.run.data
    assert data is not None, "frozen above"
    frame = session.outside.artifacts.get(data.artifact, session.folder / "data")
    resumed = _newest_checkpoint(session)
    folder = session.folder / f"segment-{session.lease.token}"
    outgoing = folder / "outgoing"
    outgoing.mkdir(parents=True, exist_ok=True)
    session.child.order(
        p.Train(
            request=session.run.plan.request,
            data=data,
            frame=frame,
            folder=folder,
            resume_from=None if resumed is None else resumed[1],
            parent=session.run.parent,
            parent_checkpoint=_parent_checkpoint(session) if resumed is None else None,
            inheritance=_inheritance(session, data),
            last_step=_last_step(session),
        )
    )
    outside = session.outside
    patience_s = session.settings.outage_patience_s
    with Uploads(outside.artifacts, outside.tracking, tracking_run_id, session.news, patience_s) as uploads:
        _Segment(session, uploads, outgoing, None if resumed is None else resumed[0]).follow()


def _freeze(session: RunSession) -> None:
    run, (request, feature_config) = session.run, session.run.plan
    record = run.parent.record if run.parent is not None else None
    parent_frame = None
    if record is not None:
        parent_frame = session.outside.artifacts.get(record.data.artifact, session.folder / "parent-data")
    order = p.Freeze(
        request=request,
        feature_config=feature_config,
        parent=run.parent,
        parent_frame=parent_frame,
        accept_drift=run.continues is not None and run.continues.accept_drift,
        folder=session.folder / "data",
    )
    session.child.order(order)
    tracking_run_id = session.open_tracking()  # MLflow makes a run while the child reads features
    try:
        frozen = session.wait_for(p.Frozen)
    except WorkFailedError as error:
        if error.failure.kind != "features_missing":
            raise
        now, policy = session.now(), session.settings.policy
        session.append(*incomplete(session.run, error.failure, now, policy))
        raise StopWorkError("features are lacking after all") from error
    artifact = session.outside.artifacts.put(tracking_run_id, "data", frozen.path)
    session.append(e.DataFrozen(artifact=artifact, **dict(frozen.data)))


def _last_step(session: RunSession) -> int:
    last_step = session.run.last_step
    assert last_step is not None, "what is trained is settled"
    return last_step


def _parent_checkpoint(session: RunSession) -> Path | None:
    parent = session.run.parent
    if parent is None:
        return None
    return session.outside.artifacts.get(parent.checkpoint, session.folder / "parent-checkpoint")


def _inheritance(session: RunSession, data: StoredData) -> Inheritance | None:
    run = session.run
    return None if run.parent is None else inheritance(run.parent, run.plan.request, data)


def _newest_checkpoint(session: RunSession) -> tuple[Checkpoint, Path] | None:
    """The newest checkpoint whose bytes are those that the log names; a damaged one is passed over."""
    for checkpoint in reversed(session.run.checkpoints):
        try:
            return checkpoint, session.outside.artifacts.get(checkpoint.artifact, session.folder / "checkpoints")
        except ArtifactDamaged as error:
            log.warning("checkpoint passed over", run_id=session.run.run_id, step=checkpoint.step, error=str(error))
    return None


class _Segment:
    """Follows the child through one segment. Every checkpoint is stored before the event that names it."""

    def __init__(self, session: RunSession, uploads: Uploads, outgoing: Path, resumed: Checkpoint | None) -> None:
        self._session = session
        self._uploads = uploads
        self._outgoing = outgoing
        self._resumed = resumed
        self._stored = {resumed.artifact.sha256} if resumed is not None else set[str]()
        self._known_to = session.run.checkpoints[-1].step if session.run.checkpoints else session.run.first_step
        """Curves up to this step are stored with checkpoints, also where an older one is resumed from."""
        self._points: list[p.CurvePoint] = []
        self._last_point_ms = 0
        self._waiting: tuple[Path, int] | None = None
        self._storing = False
        self._last_step = session.run.last_step

    def follow(self) -> None:
        """To the last update, or to the checkpoint at which the child was told to stop."""
        for checkpoint in self._session.run.checkpoints:
            # Whoever stored it may have died before its curves were logged; a repeat adds nothing.
            points = self._session.curves(checkpoint)
            self._uploads.metrics(points)
            self._last_point_ms = points[-1].timestamp_ms if points else self._last_point_ms
        trained: p.Trained | None = None
        while trained is None or trained.sha256 not in self._stored:
            item = self._session.next(child_owes=trained is None, training=True)
            if isinstance(item, p.Trained):
                trained = item
            else:
                self._take(item)
        if not trained.finished:
            if self._session.stopping:
                raise StopWorkError("told to stop; the last checkpoint is stored")
            self._drain()
            self._session.refresh()
            return
        self._uploads.metrics(points_at(trained.validation, trained.steps, self._last_point_ms))
        self._drain()
        self._session.append(e.TrainingFinished(checkpoint=trained.sha256, steps=trained.steps))

    def _drain(self) -> None:
        """Wait until all is stored. Left where told to stop: who goes on sends the curves again."""
        self._uploads.tell_when_done()
        while not isinstance(self._session.next(child_owes=False), UploadsDone):
            pass

    def _take(self, item: object) -> None:
        match item:
            case p.SegmentBegun(fingerprint=fingerprint):
                self._begin(fingerprint)
            case Wished(run=run) if run.pause is not None or run.last_step != self._last_step:
                self._session.child.order(p.Stop())
            case p.Advanced():
                self._session.keeper.progress = _progress(item)
            case p.Curves(points=points):
                self._points += (point for point in points if point.step > self._known_to)
            case p.CheckpointWritten(sha256=sha256) if sha256 not in self._stored:
                self._keep(item)
                self._store_next()
            case CheckpointStored(step=step, artifact=artifact, curves=curves, points=points):
                self._session.append(e.CheckpointSaved(step=step, curves=curves, **artifact.model_dump()))
                self._uploads.metrics(points)
                self._stored.add(artifact.sha256)
                self._storing = False
                self._store_next()
            case _:
                pass

    def _keep(self, written: p.CheckpointWritten) -> None:
        """Hold on to a checkpoint that the child will remove. One that still waits is overtaken by it."""
        kept = self._outgoing / f"checkpoint-{written.step:012d}.zip"
        try:
            same_file(written.path, kept)
        except FileNotFoundError:
            return  # we were slower than the child's next three: a newer one is on its way
        if self._waiting is not None:
            self._waiting[0].unlink()
        self._waiting = kept, written.step

    def _store_next(self) -> None:
        """One at a time, so that the curves of the one before are sent before this one is named in the log."""
        if self._storing or self._waiting is None:
            return
        (kept, step), self._waiting, self._storing = self._waiting, None, True
        # What came while the checkpoint waited belongs to the next one: a resume from this one makes it again.
        points = tuple(point for point in self._points if point.step <= step)
        self._points = [point for point in self._points if point.step > step]
        self._last_point_ms = points[-1].timestamp_ms if points else self._last_point_ms
        self._uploads.checkpoint(kept, step, f"checkpoints/{self._session.lease.token:04d}", points)

    def _begin(self, fingerprint: Fingerprint) -> None:
        session, token, data = self._session, self._session.lease.token, self._session.run.data
        assert data is not None, "a segment trains on frozen data"
        if not session.run.started:
            tracking_run_id = session.open_tracking()
            session.append(
                e.TrainingStarted(
                    token=token,
                    fingerprint=fingerprint,
                    tracking_run_id=tracking_run_id,
                    step=session.run.first_step,
                    inheritance=_inheritance(session, data),
                )
            )
            return
        before = session.run.fingerprint
        differences = before.differences(fingerprint) if before is not None else ()
        if differences and session.run.plan.request.agent.resume_fidelity == "exact":
            words = "a resume here would not be exact, as the request demands"
            detail = "\n".join(differences)
            raise ResumeImpossible(
                Failure(kind="resume_impossible", words=words, field="agent.resume_fidelity", detail=detail)
            )
        session.append(
            e.TrainingResumed(
                token=token,
                step=self._resumed.step if self._resumed is not None else session.run.first_step,
                checkpoint=self._resumed.artifact.sha256 if self._resumed is not None else None,
                fidelity="approximate" if differences else "exact",
                fingerprint=fingerprint,
                differences=differences,
            )
        )


def _progress(advanced: p.Advanced) -> Progress:
    left = advanced.total - advanced.step
    return Progress(
        step=advanced.step,
        total=advanced.total,
        steps_per_s=advanced.steps_per_s,
        reward=advanced.reward,
        eta_s=left / advanced.steps_per_s if advanced.steps_per_s > 0 else None,
        at=datetime.now(UTC),
    )
