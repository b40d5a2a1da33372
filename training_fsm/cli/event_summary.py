"""One line for people about each event."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from training_fsm.domain import events as e
from training_fsm.domain.facts import Contest, Failure, ModelRef, SharedRows
from training_fsm.domain.lineage import Change, Inheritance, Parent, Part
from training_fsm.domain.request import ContinueRequest, TrainingRequest

CHANGES_MAX = 3


def summary(event: e.Event) -> str:
    """What happened, with the numbers that matter."""
    match event:
        case e.RunRequested(request=ContinueRequest(parent=parent)):
            return f"continues {parent}"
        case e.RunRequested(request=TrainingRequest() as request):
            return (
                f"{request.model}: {request.agent.name} on {request.symbol} {request.timeframe.value}, "
                f"{request.agent.whole_timesteps:,} steps, seed {request.agent.seed}"
            )
        case e.ParentResolved(parent=parent, changes=changes):
            return f"{parent_words(parent)}; {change_words(parent, changes, CHANGES_MAX)}"
        case e.FeaturesLacking(service=service, ranges=ranges):
            return f"{service} lacks {', '.join(span(range_.start, range_.end) for range_ in ranges)}"
        case e.FeaturesRequested(attempt=attempt, deadline=deadline, request_id=request_id, range=asked):
            of = f" for {span(asked.start, asked.end)}" if asked else ""
            of += "" if event.context == "training" else f" as a {event.context}"
            return f"attempt {attempt}, request {request_id}{of}, until {moment(deadline)}"
        case e.FeaturesIncomplete(service=service, field=field, range=range_, words=words):
            return _placed(words, service, field, range_)
        case e.DeadlinePassed(request_id=request_id):
            return f"no answer to {request_id}; Feast is looked into once more"
        case e.FeatureRequestAnswered(status=status, words=words):
            return f"ingest answered {status}: {words}"
        case e.FeaturesReady(request_id=e.FOUND_IN_FEAST):
            return "all of them are in Feast, nobody was asked"
        case e.FeaturesReady(total_features_computed=total):
            return f"preprocess says {total:,} features are computed"
        case e.RunClaimed(worker=worker, token=token):
            return f"{worker} took it, token {token}"
        case e.DataFrozen():
            return _data(event)
        case e.TrainingStarted(fingerprint=fingerprint):
            return f"torch {fingerprint.torch} on {fingerprint.device}, {fingerprint.cpu_capability}" + _going_on(event)
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
        case e.EvaluationFinished(passed=passed, gate=gate, validations=validations, contest=contest):
            rules = (*gate, *validations)
            held = sum(verdict.passed for verdict in rules)
            words = f"{'passed' if passed else 'did not pass'}, {held} of {len(rules)} rules hold"
            return words + (f"; {contest_words(contest)}" if contest else "")
        case e.RegistrationIntended(key=key):
            return f"key {key}"
        case e.ModelRegistered(name=name, version=version, digest=digest, parent=parent, depth=depth):
            line = f", child of {parent}" if parent else ", child of a file" if depth else ""
            return f"{name} version {version}, digest {digest[:12]}{line}"
        case e.ChampionPromoted(name=name, version=version, supersedes=supersedes):
            return f"{name} version {version}, " + (f"in place of {supersedes}" if supersedes else "its first champion")
        case e.ModelRejected(failed=failed):
            return f"did not hold: {', '.join(failed)}"
        case e.AttemptFailed(reason=reason, attempt=attempt, retry_at=retry_at):
            return f"failure {attempt}, again at {moment(retry_at)}: {failure(reason)}"
        case e.RunFailed(reason=reason):
            return failure(reason)
        case e.RunPaused(step=step):
            return f"at step {step:,} {_who(event)}".rstrip()
        case e.RunExtended(additional_timesteps=steps):
            return f"by {steps:,} steps {_who(event)}".rstrip()
        case e.RunCancelled() | e.RunRetried() | e.PauseRequested() | e.RunResumed() | e.RejectionOverridden():
            return _who(event)
        case e.ArtifactsReleased(artifacts=artifacts, why=why):
            return f"{count(len(artifacts), 'stored file')}: {why}"
        case e.LogRestored(last_position=last, published_position=published):
            return f"at position {last:,}, {published:,} had gone out"
        case e.CommandRefused(command_type=command_type, reason=reason):
            return f"{command_type}: {reason}"
        case e.MessageDeadLettered(topic=topic, partition=partition, offset=offset, reason=reason):
            return f"{topic}/{partition} at {offset}: {reason}"
        case _:
            return ""


def _data(event: e.DataFrozen) -> str:
    columns = len(event.observation_columns)
    line = f"{event.rows:,} rows, {columns} observation columns, {event.gaps.count:,} gaps, data {event.digest[:12]}"
    line += f", warnings: {len(event.warnings)}" if event.warnings else ""
    return line + (f"; {shared_words(event.shared)}" if event.shared else "")


_Ordered = (
    e.RunCancelled
    | e.RunRetried
    | e.PauseRequested
    | e.RunPaused
    | e.RunResumed
    | e.RunExtended
    | e.RejectionOverridden
)


def _who(event: _Ordered) -> str:
    named = (f"by {event.actor}" if event.actor else "", f"({event.why})" if event.why else "")
    return " ".join(part for part in named if part)


def _going_on(event: e.TrainingStarted) -> str:
    if event.inheritance is None:
        return ""
    return f"; goes on at step {event.step:,}: {inheritance_words(event.inheritance)}"


def failure(reason: Failure) -> str:
    """Why something failed, with service, field and range where there are some."""
    return f"{reason.kind}: " + _placed(reason.words, reason.service, reason.field, reason.range)


def _placed(words: str, service: str | None, field: str | None, range_: str | None) -> str:
    places = (("service", service), ("field", field), ("range", range_))
    named = ", ".join(f"{name} {value}" for name, value in places if value)
    return words + (f" [{named}]" if named else "")


def parent_words(parent: Parent) -> str:
    """What a run continues, and where its counters go on from."""
    match parent.kind:
        case "training_fsm":
            what = str(parent.model)
        case "sb3_weights" | "sb3_whole":
            read = "weights only" if parent.kind == "sb3_weights" else "read whole"
            what = f"{parent.model or 'a file'}, a Stable-Baselines3 zip, {read}"
        case _:
            assert_never(parent.kind)
    return f"{what}, at step {parent.steps:,}"


def descent_words(root: ModelRef | None, depth: int) -> str:
    """How far a model is from the first of its line."""
    began = f"the line that began with {root}" if root else "a line that began with a file"
    return f"generation {depth} of {began}"


def change_words(parent: Parent, changes: Sequence[Change], most: int) -> str:
    """How many fields of a request differ from the parent's, and the first of them."""
    if parent.record is None:
        return f"it has no request that the {count(len(changes), 'field')} of this one could differ from"
    if not changes:
        return "no field changes"
    shown = [change_line(change) for change in changes[:most]]
    more = [f"and {len(changes) - most} more"] if len(changes) > most else []
    return f"{count(len(changes), 'field')} change{'s' * (len(changes) == 1)}: {', '.join(shown + more)}"


def change_line(change: Change) -> str:
    """A field with the parent's value and the child's."""
    return f"{change.field}: {bare(change.parent)} -> {bare(change.child)}"


def bare(value: str | None) -> str:
    """A value that is kept as JSON: text without its quotes."""
    if value is None:
        return "absent"
    return str(json.loads(value)) if value.startswith('"') else value


def inheritance_words(inheritance: Inheritance) -> str:
    """What is carried over from the parent, and what begins anew with its reason."""
    reasons: dict[str, list[Part]] = {}
    for reset in inheritance.reset:
        reasons.setdefault(reset.why, []).append(reset.part)
    carried = [f"carried {_names(inheritance.carried)}"] if inheritance.carried else []
    return "; ".join(carried + [f"reset {_names(parts)} because {why}" for why, parts in reasons.items()])


def shared_words(shared: SharedRows) -> str:
    """What became of the bars that the parent was trained on."""
    rows = f"{count(shared.rows, 'row')} shared with the parent"
    if shared.found_digest is None:
        return f"{rows}, not compared: Feast has none of them any more"
    if not shared.rows_different:
        return f"{rows}, compared: equal"
    first = shared.first_difference
    where = "" if first is None else f", first {first.column} at {moment(first.time)}: {first.parent} -> {first.found}"
    differ = "1 differs" if shared.rows_different == 1 else f"{shared.rows_different:,} differ"
    return f"{rows}, compared: {differ}{where}"


def contest_words(contest: Contest) -> str:
    """A challenger against the champion."""
    if contest.champion is None:
        return "no champion yet to beat"
    if contest.obstacle is not None:
        return f"not against {contest.champion}: {contest.obstacle}"
    metric = contest.metric
    mine, theirs = (
        f"{metrics[metric]:.4g}" if metric in metrics else "unknown"
        for metrics in (contest.challenger_metrics, contest.champion_metrics)
    )
    return f"against {contest.champion} on {count(contest.bars, 'bar')}: {metric} {mine} vs {theirs}"


def _names(parts: Sequence[Part]) -> str:
    return ", ".join(part.replace("_", " ") for part in parts)


def count(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def moment(time: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S}Z"


def span(start: datetime, end: datetime) -> str:
    """From a time to a time; days alone where both are midnights."""
    midnights = all(time.time() == datetime.min.time() for time in (start, end))
    return f"{start:%Y-%m-%d} to {end:%Y-%m-%d}" if midnights else f"{moment(start)} to {moment(end)}"
