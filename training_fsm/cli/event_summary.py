"""One line for people about each event."""

from datetime import datetime

from training_fsm.domain import events as e
from training_fsm.domain.facts import Failure


def summary(event: e.Event) -> str:
    """What happened, with the numbers that matter."""
    match event:
        case e.RunRequested(request=request):
            return (
                f"{request.model}: {request.agent.name} on {request.symbol} {request.timeframe.value}, "
                f"{request.agent.whole_timesteps:,} steps, seed {request.agent.seed}"
            )
        case e.FeaturesRequested(attempt=attempt, deadline=deadline, request_id=request_id):
            return f"attempt {attempt}, request {request_id}, until {moment(deadline)}"
        case e.FeatureRequestAnswered(status=status, words=words):
            return f"ingest answered {status}: {words}"
        case e.FeaturesReady(total_features_computed=total):
            return f"preprocess says {total:,} features are computed"
        case e.RunClaimed(worker=worker, token=token):
            return f"{worker} took it, token {token}"
        case e.DataFrozen():
            return _data(event)
        case e.TrainingStarted(fingerprint=fingerprint):
            return f"torch {fingerprint.torch} on {fingerprint.device}, {fingerprint.cpu_capability}"
        case e.TrainingResumed(step=step, fidelity=fidelity, differences=differences):
            return f"from step {step:,}, {fidelity}" + "".join(f"; {difference}" for difference in differences)
        case e.CheckpointSaved(step=step, artifact=artifact):
            return f"step {step:,}, {artifact.size_bytes:,} bytes, sha256 {artifact.sha256[:12]}"
        case e.TrainingFinished(steps=steps):
            return f"{steps:,} steps"
        case _:
            return _ending(event)


def _ending(event: e.Event) -> str:
    match event:
        case e.EvaluationFinished(passed=passed, gate=gate, validations=validations):
            rules = (*gate, *validations)
            held = sum(verdict.passed for verdict in rules)
            return f"{'passed' if passed else 'did not pass'}, {held} of {len(rules)} rules hold"
        case e.RegistrationIntended(key=key):
            return f"key {key}"
        case e.ModelRegistered(name=name, version=version, digest=digest):
            return f"{name} version {version}, digest {digest[:12]}"
        case e.ModelRejected(failed=failed):
            return f"did not hold: {', '.join(failed)}"
        case e.AttemptFailed(reason=reason, attempt=attempt, retry_at=retry_at):
            return f"failure {attempt}, again at {moment(retry_at)}: {failure(reason)}"
        case e.RunFailed(reason=reason):
            return failure(reason)
        case e.RunCancelled(actor=actor, why=why) | e.RunRetried(actor=actor, why=why):
            return " ".join(part for part in (f"by {actor}" if actor else "", f"({why})" if why else "") if part)
        case e.CommandRefused(command_type=command_type, reason=reason):
            return f"{command_type}: {reason}"
        case e.MessageDeadLettered(topic=topic, partition=partition, offset=offset, reason=reason):
            return f"{topic}/{partition} at {offset}: {reason}"
        case _:
            return ""


def _data(event: e.DataFrozen) -> str:
    columns = len(event.observation_columns)
    line = f"{event.rows:,} rows, {columns} observation columns, {event.gaps.count:,} gaps, data {event.digest[:12]}"
    return line + (f", warnings: {len(event.warnings)}" if event.warnings else "")


def failure(reason: Failure) -> str:
    """Why something failed, with service, field and range where there are some."""
    places = (("service", reason.service), ("field", reason.field), ("range", reason.range))
    named = ", ".join(f"{name} {value}" for name, value in places if value)
    return f"{reason.kind}: {reason.words}" + (f" [{named}]" if named else "")


def moment(time: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S}Z"
