"""Run + event -> run. Takes the state from the record and never asks the machine: old history must always fold."""

from training_fsm.domain import events as e
from training_fsm.domain.request import ContinueRequest, TrainingRequest
from training_fsm.domain.run import Checkpoint, FeatureRequest, Run
from training_fsm.domain.states import State

CHECKPOINTS_KEPT = 3
"""How far back a resume can fall when newer checkpoints are damaged."""


def evolve(run: Run | None, run_id: str, event: e.Event, to_state: State) -> Run:
    """The run after `event`; `to_state` is what the record says."""
    if run is None:
        if not isinstance(event, e.RunRequested):
            raise ValueError(f"run {run_id}: the first event must be run_requested, got {event.type()}")
        asked = event.request
        return Run(
            run_id=run_id,
            version=1,
            state=to_state,
            request=asked if isinstance(asked, TrainingRequest) else None,
            feature_config=event.feature_config,
            continues=asked if isinstance(asked, ContinueRequest) else None,
        )
    return run.model_copy(update={"version": run.version + 1, "state": to_state, **_changes(run, event)})


def _changes(run: Run, event: e.Event) -> dict[str, object]:
    progress: dict[str, object] = {"attempts_failed": 0, "retry_at": None}
    if run.state is not State.FAILED:  # what ended a run stays said, also when its features come too late
        progress["failure"] = None
    match event:
        case e.ParentResolved(parent=parent, request=request, feature_config=feature_config):
            return {"parent": parent, "request": request, "feature_config": feature_config, **progress}
        case e.FeaturesRequested():
            question = FeatureRequest(**event.model_dump())
            return {"features": question, "features_ready": None, "worker": None, **progress}
        case e.FeatureRequestAnswered():
            assert run.features is not None, "an answer needs a question"
            return {"features": run.features.model_copy(update={"accepted": True}), **progress}
        case e.FeaturesReady():
            return {"features_ready": event, **progress}
        case e.DeadlinePassed():
            assert run.features is not None, "only a question has a deadline"
            # How often ingest was asked in vain says nothing of the look that follows; why stays said.
            overdue = run.features.model_copy(update={"overdue": True})
            return {"features": overdue, "attempts_failed": 0, "retry_at": None}
        case e.FeaturesIncomplete():
            return {"pause": None}
        case e.RunClaimed(token=token, worker=worker):
            # Its last holder neither recorded an end nor a failure: it died, and perhaps of this run.
            died = run.worker is not None
            return {"token": token, "worker": worker, "attempts_failed": run.attempts_failed + died}
        case e.DataFrozen():
            return {"data": event, **progress}
        case e.TrainingStarted():
            return {"started": True, "fingerprint": event.fingerprint, "tracking_run_id": event.tracking_run_id}
        case e.TrainingResumed(fingerprint=fingerprint):
            return {"fingerprint": fingerprint}
        case e.CheckpointSaved(step=step, artifact=artifact, curves=curves):
            kept = (*run.checkpoints, Checkpoint(step=step, artifact=artifact, curves=curves))[-CHECKPOINTS_KEPT:]
            return {"checkpoints": kept, **progress}
        case e.PauseRequested():
            return {"pause": event}
        case e.RunPaused():
            return {"pause": None, "worker": None}
        case e.RunResumed():
            return {"pause": None}
        case e.RunExtended(additional_timesteps=additional):
            total: dict[str, object] = {"extended_timesteps": run.extended_timesteps + additional}
            if run.state is not State.REJECTED:
                return total
            return {**total, "evaluation": None, "registration_key": None, **progress}
        case e.TrainingFinished():
            return {"pause": None}
        case e.RejectionOverridden():
            return {"overridden": event, **progress}
        case e.ArtifactsReleased(artifacts=artifacts):
            needed = _needed(run)
            return {"files_released": run.files_released or any(artifact.uri in needed for artifact in artifacts)}
        case e.EvaluationFinished():
            return {"evaluation": event, **progress}
        case e.RegistrationIntended(key=key):
            return {"registration_key": key}
        case e.ModelRegistered():
            return {"registered": event, "worker": None}
        case e.AttemptFailed(reason=reason, attempt=attempt, retry_at=retry_at):
            return {"failure": reason, "attempts_failed": attempt, "retry_at": retry_at, "worker": None}
        case e.RunFailed(reason=reason, failed_from=failed_from):
            return {"failure": reason, "failed_from": failed_from, "retry_at": None, "worker": None, "pause": None}
        case e.RunRetried():
            return {"failure": None, "failed_from": None, **progress}
        case e.ModelRejected() | e.RunCancelled():
            return {"worker": None, "pause": None}
        case _:
            return {}


def _needed(run: Run) -> set[str]:
    """Where the files lie without which the run cannot go on."""
    needed = {checkpoint.artifact.uri for checkpoint in run.checkpoints[-1:]}
    if run.data is not None:
        needed.add(run.data.artifact.uri)
    if not needed and run.parent is not None:
        needed.add(run.parent.checkpoint.uri)
    return needed
