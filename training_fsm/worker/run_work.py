"""A worker's work on one run, under one lease: freeze, train, evaluate, register, each fact appended as it comes."""

import os
import queue
import random
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from training_fsm.domain import events as e
from training_fsm.domain.decide import failed
from training_fsm.domain.errors import (
    ArtifactDamaged,
    LeaseLost,
    OutsideUnavailable,
    ResumeImpossible,
    TransitionRefused,
)
from training_fsm.domain.facts import Artifact, Failure, Fingerprint, Progress
from training_fsm.domain.run import Checkpoint, Run
from training_fsm.domain.states import State
from training_fsm.ports import Artifacts, Cause, Tracking
from training_fsm.service.conflicts import on_conflict_again
from training_fsm.service.model_lifecycle_service import ModelLifecycleService, registration_key
from training_fsm.settings import Settings
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.worker import protocol as p
from training_fsm.worker.child_process import ChildDied, ChildProcess
from training_fsm.worker.lease_keeper import LeaseKeeper, Moved, Taken
from training_fsm.worker.uploads import CheckpointStored, UploadFailed, Uploads

log = structlog.get_logger()

R = TypeVar("R", bound=p.Reply)


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


class RunWork:
    """One claim's work. Everything that happens comes through one queue, in order."""

    def __init__(
        self,
        outside: Outside,
        settings: Settings,
        claimed: tuple[Run, Lease],
        child: ChildProcess,
        news: "queue.SimpleQueue[object]",
        stop: threading.Event,
    ) -> None:
        self._outside = outside
        self._settings = settings
        self._run, self._lease = claimed
        self._child = child
        self._news = news
        self._stop = stop
        self._folder = settings.spool / self._run.run_id
        self._cause = Cause(self._lease.worker, f"claim-{self._run.run_id}-{self._lease.token}", self._run.run_id)
        every_s = min(settings.heartbeat_s, settings.lease_s / 3)
        self._keeper = LeaseKeeper(outside.log, self._lease, settings.lease_s, every_s, news)
        self._tracking_run_id: str | None = None

    def work(self) -> Run:
        """Work until the run has ended or cannot go on here, and return it as this worker last knew it."""
        try:
            with self._keeper:
                if self._run.state is State.TRAINING:
                    self._train()
                if self._run.state is State.EVALUATING:
                    self._evaluate()
        except StopWorkError as reason:
            log.info("work stops", run_id=self._run.run_id, reason=str(reason))
        except WorkFailedError as error:
            self._fail(error.failure, passing=error.passing)
        except (ArtifactDamaged, ResumeImpossible) as error:
            self._fail(error.failure, passing=False)
        except OutsideUnavailable as error:
            away = Failure(kind="outside_unavailable", words=str(error), service=error.service)
            self._fail(away, passing=True)
        self._tidy()
        return self._run

    # Appending

    def _append(self, *events: e.Event) -> None:
        try:
            self._run = self._append_again(events)
        except LeaseLost as error:
            raise StopWorkError(str(error)) from error
        except TransitionRefused as error:
            moved = self._outside.log.load(self._run.run_id)
            self._run = moved or self._run
            raise StopWorkError(f"the run moved on to {self._run.state.value}: {error}") from error
        for event in events:
            log.info(event.type(), run_id=self._run.run_id, state=self._run.state.value)

    @on_conflict_again
    def _append_again(self, events: Sequence[e.Event]) -> Run:
        return self._outside.log.append_fenced(self._lease, events, self._cause)

    def _fail(self, failure: Failure, *, passing: bool) -> None:
        log.warning("work failed", run_id=self._run.run_id, failure=failure.words, passing=passing)
        events = failed(
            self._run,
            failure,
            passing=passing,
            now=self._outside.log.now(),
            policy=self._settings.policy,
            jitter=random.random(),
        )
        try:
            self._append(*events)
        except StopWorkError as reason:
            log.info("work stops", run_id=self._run.run_id, reason=str(reason))

    # Listening

    def _next(self) -> object:
        """The next news that is not about the lease. Raises StopWorkError and WorkFailedError for those that end it."""
        silent_since = time.monotonic()
        while True:
            try:
                item = self._news.get(timeout=0.2)
            except queue.Empty:
                if self._stop.is_set():
                    self._child.order(p.Stop())
                if time.monotonic() - silent_since > self._settings.child_silence_s:
                    words = f"the training process said nothing for {self._settings.child_silence_s:g} s"
                    raise WorkFailedError(Failure(kind="worker_crashed", words=words), passing=True) from None
                continue
            match item:
                case Taken():
                    raise StopWorkError("another worker holds the run")
                case Moved(run=run):
                    self._run = run
                    raise StopWorkError(f"the run moved on to {run.state.value}")
                case ChildDied(last_lines=lines):
                    crashed = Failure(kind="worker_crashed", words=item.words(), detail=lines or None)
                    raise WorkFailedError(crashed, passing=True)
                case p.Failed(failure=failure, passing=passing):
                    raise WorkFailedError(failure, passing=passing)
                case UploadFailed(error=error):
                    raise error
                case p.Ready():
                    silent_since = time.monotonic()
                case _:
                    return item

    def _ask(self, order: p.Order, reply: type[R]) -> R:
        self._child.order(order)
        while True:
            item = self._next()
            if isinstance(item, reply):
                return item

    # Training

    def _train(self) -> None:
        run = self._run
        if run.data is None:
            # Both at once: the child reads features while MLflow makes a run.
            self._child.order(
                p.Freeze(request=run.request, feature_config=run.feature_config, folder=self._folder / "data")
            )
            tracking_run_id = self._open_tracking()
            while not isinstance(frozen := self._next(), p.Frozen):
                pass
            self._append(_frozen(frozen, self._outside.artifacts.put(tracking_run_id, "data", frozen.path)))
        tracking_run_id = self._open_tracking()
        data = self._run.data
        assert data is not None, "appended above"
        frame = self._outside.artifacts.get(data.artifact, self._folder / "data")
        checkpoint = self._newest_checkpoint()
        segment = self._folder / f"segment-{self._lease.token}"
        outgoing = segment / "outgoing"
        outgoing.mkdir(parents=True, exist_ok=True)
        self._child.order(
            p.Train(
                request=run.request,
                data=data,
                frame=frame,
                folder=segment,
                resume_from=None if checkpoint is None else checkpoint[1],
            )
        )
        patience_s = self._settings.outage_patience_s
        with Uploads(
            self._outside.artifacts, self._outside.tracking, tracking_run_id, self._news, patience_s
        ) as uploads:
            last_point_ms = self._send_again(uploads, checkpoint[0]) if checkpoint is not None else 0
            self._segment(uploads, outgoing, checkpoint[0] if checkpoint is not None else None, last_point_ms)

    def _segment(self, uploads: Uploads, outgoing: Path, resumed: Checkpoint | None, last_point_ms: int) -> None:
        """Follow a segment to its end. Every checkpoint is stored before the event that names it."""
        since_checkpoint: list[p.CurvePoint] = []
        stored = {resumed.artifact.sha256} if resumed is not None else set()
        trained: p.Trained | None = None
        while trained is None or trained.sha256 not in stored:
            match self._next():
                case p.SegmentBegun(fingerprint=fingerprint):
                    self._begin(fingerprint, resumed)
                case p.Advanced() as advanced:
                    self._keeper.progress = _progress(advanced)
                case p.Curves(points=points):
                    since_checkpoint += points
                case p.CheckpointWritten(path=path, step=step, sha256=sha256) if sha256 not in stored:
                    kept = outgoing / f"checkpoint-{step:012d}.zip"
                    os.link(path, kept)  # the child removes old ones, also while the store is away
                    folder = f"checkpoints/{self._lease.token:04d}"
                    uploads.checkpoint(kept, step, folder, tuple(since_checkpoint))
                    last_point_ms = since_checkpoint[-1].timestamp_ms if since_checkpoint else last_point_ms
                    since_checkpoint = []
                case CheckpointStored() as news:
                    saved = e.CheckpointSaved(step=news.step, artifact=news.artifact, curves=news.curves)
                    self._append(saved)
                    uploads.metrics(news.points)
                    stored.add(news.artifact.sha256)
                case p.Trained() as trained:
                    pass
                case _:
                    pass
        if not trained.finished:
            raise StopWorkError("told to stop; the last checkpoint is stored")
        # The time of the last curve point, the same for whoever repeats this.
        uploads.metrics(_at(trained.validation, trained.steps, last_point_ms))
        uploads.drain()
        self._append(e.TrainingFinished(checkpoint_sha256=trained.sha256, steps=trained.steps))

    def _begin(self, fingerprint: Fingerprint, resumed: Checkpoint | None) -> None:
        token, tracking_run_id = self._lease.token, self._tracking_run_id
        assert tracking_run_id is not None, "opened before training"
        if not self._run.started:
            self._append(e.TrainingStarted(token=token, fingerprint=fingerprint, tracking_run_id=tracking_run_id))
            return
        before = self._run.fingerprint
        differences = before.differences(fingerprint) if before is not None else ()
        if differences and self._run.request.agent.resume_fidelity == "exact":
            words = "a resume here would not be exact, as the request demands"
            raise ResumeImpossible(
                Failure(kind="resume_impossible", words=words, field="fingerprint", detail="\n".join(differences))
            )
        self._append(
            e.TrainingResumed(
                token=token,
                step=resumed.step if resumed is not None else 0,
                checkpoint_sha256=resumed.artifact.sha256 if resumed is not None else None,
                fidelity="approximate" if differences else "exact",
                fingerprint=fingerprint,
                differences=differences,
            )
        )

    def _newest_checkpoint(self) -> tuple[Checkpoint, Path] | None:
        """The newest checkpoint whose bytes are those that the log names; a damaged one is passed over."""
        for checkpoint in reversed(self._run.checkpoints):
            try:
                return checkpoint, self._outside.artifacts.get(checkpoint.artifact, self._folder / "checkpoints")
            except ArtifactDamaged as error:
                log.warning("checkpoint passed over", run_id=self._run.run_id, step=checkpoint.step, error=str(error))
        return None

    def _send_again(self, uploads: Uploads, checkpoint: Checkpoint) -> int:
        """Log the curves of the checkpoint we resume from once more: whoever wrote it may have died before.

        Returns the time of the last point.
        """
        if checkpoint.curves is None:
            return 0
        points = self._curves(checkpoint.curves)
        uploads.metrics(points)
        return points[-1].timestamp_ms if points else 0

    def _curves(self, artifact: Artifact) -> tuple[p.CurvePoint, ...]:
        path = self._outside.artifacts.get(artifact, self._folder / "checkpoints")
        return p.Curves.model_validate_json(path.read_bytes()).points

    # Evaluation and registration

    def _evaluate(self) -> None:
        tracking_run_id = self._open_tracking()
        run, data = self._run, self._run.data
        assert data is not None, "TRAINING freezes the data"
        last = run.checkpoints[-1]
        checkpoint = self._outside.artifacts.get(last.artifact, self._folder / "checkpoints")
        if run.evaluation is None:
            frame = self._outside.artifacts.get(data.artifact, self._folder / "data")
            evaluated = self._ask(
                p.Evaluate(
                    run_id=run.run_id,
                    request=run.request,
                    feature_config=run.feature_config,
                    data=data,
                    frame=frame,
                    checkpoint=checkpoint,
                    checkpoint_sha256=last.artifact.sha256,
                    folder=self._folder / "report",
                ),
                p.Evaluated,
            )
            stored = [self._outside.artifacts.put(tracking_run_id, "report", path) for path in evaluated.report]
            self._append(_evaluation(evaluated, stored[-1]))
        evaluation = self._run.evaluation
        assert evaluation is not None, "appended above"
        points = self._curves(last.curves) if last.curves is not None else ()
        at_ms = points[-1].timestamp_ms if points else 0
        named = {f"test/{name}": value for name, value in evaluation.metrics.items()}
        self._log_metrics(tracking_run_id, _at(named, last.step, at_ms))
        if evaluation.passed:
            self._register(checkpoint, last.artifact.sha256, tracking_run_id)
        else:
            verdicts = (*evaluation.gate, *evaluation.validations)
            self._append(e.ModelRejected(failed=tuple(verdict.name for verdict in verdicts if not verdict.passed)))
            self._outside.tracking.close_run(tracking_run_id, "FINISHED")

    def _register(self, checkpoint: Path, sha256: str, tracking_run_id: str) -> None:
        run, data = self._run, self._run.data
        assert data is not None, "TRAINING freezes the data"
        if run.registration_key is None:
            self._append(e.RegistrationIntended(key=registration_key(run)))
        packaged = self._ask(
            p.Package(
                run_id=run.run_id,
                request=run.request,
                feature_config=run.feature_config,
                data=data,
                checkpoint=checkpoint,
                checkpoint_sha256=sha256,
                created_at=data.bounds.test.end,
                folder=self._folder / "model",
            ),
            p.Packaged,
        )
        self._append(self._outside.lifecycle.register(self._run, packaged.folder))
        self._outside.lifecycle.reconcile_aliases({run.request.model: self._registered_version()})
        self._outside.tracking.close_run(tracking_run_id, "FINISHED")

    def _registered_version(self) -> int:
        return self._outside.log.registered_versions()[self._run.request.model]

    # Tracking

    def _open_tracking(self) -> str:
        if self._tracking_run_id is None:
            run = self._run
            tags = {
                "training_fsm.model": run.request.model,
                "training_fsm.symbol": run.request.symbol,
                "training_fsm.timeframe": run.request.timeframe.value,
                "training_fsm.feature_config_hash": run.feature_config.hash,
                "training_fsm.worker": self._lease.worker,
            }
            parameters = flatten(run.request.model_dump(mode="json", exclude={"features"}))
            self._tracking_run_id = self._outside.tracking.open_run(run.run_id, parameters, tags)
        return self._tracking_run_id

    def _log_metrics(self, tracking_run_id: str, points: Sequence[p.CurvePoint]) -> None:
        from training_fsm.ports import MetricPoint

        metrics = [MetricPoint(point.name, point.value, point.step, point.timestamp_ms) for point in points]
        self._outside.tracking.log_metrics(tracking_run_id, metrics)

    def _tidy(self) -> None:
        """An ended run's files lie in the artifact store: its spool goes. Its tracking run is told of a bad end."""
        if not self._run.ended:
            return
        if self._tracking_run_id is not None and self._run.state in (State.FAILED, State.CANCELLED):
            status = "FAILED" if self._run.state is State.FAILED else "KILLED"
            try:
                self._outside.tracking.close_run(self._tracking_run_id, status)
            except OutsideUnavailable as error:
                log.warning("tracking run left open", run_id=self._run.run_id, error=error.words)
        shutil.rmtree(self._folder, ignore_errors=True)


def _frozen(frozen: p.Frozen, artifact: Artifact) -> e.DataFrozen:
    return e.DataFrozen(artifact=artifact, **frozen.model_dump(exclude={"kind", "path"}))


def _evaluation(evaluated: p.Evaluated, report: Artifact) -> e.EvaluationFinished:
    return e.EvaluationFinished(report=report, **evaluated.model_dump(exclude={"kind", "report"}))


def _progress(advanced: p.Advanced) -> Progress:
    from datetime import UTC, datetime

    left = advanced.total - advanced.step
    return Progress(
        step=advanced.step,
        total=advanced.total,
        steps_per_s=advanced.steps_per_s,
        reward=advanced.reward,
        eta_s=left / advanced.steps_per_s if advanced.steps_per_s > 0 else None,
        at=datetime.now(UTC),
    )


def _at(values: dict[str, float], step: int, timestamp_ms: int) -> list[p.CurvePoint]:
    return [
        p.CurvePoint(name=name, value=value, step=step, timestamp_ms=timestamp_ms) for name, value in values.items()
    ]


def flatten(value: object, path: str = "") -> dict[str, str]:
    """Nested data as MLflow parameters, `agent.hyperparameters.gamma`: one text for each leaf; absent ones left out."""
    match value:
        case dict():
            parts = [flatten(child, f"{path}.{name}" if path else str(name)) for name, child in value.items()]
            return {name: text for part in parts for name, text in part.items()}
        case None:
            return {}
        case _:
            return {path: str(value)}
