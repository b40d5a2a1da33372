"""What the card of a run says, line by line."""

from collections.abc import Iterator

from training_fsm.cli.event_summary import (
    change_line,
    change_words,
    contest_words,
    descent_words,
    failure,
    moment,
    parent_words,
    shared_words,
    span,
)
from training_fsm.domain.continuation import changes_between, inheritance
from training_fsm.domain.facts import Contest, PartBounds, Verdict
from training_fsm.domain.lineage import Parent
from training_fsm.domain.run import Run
from training_fsm.domain.states import State


def card_lines(run: Run, lease: str | None) -> Iterator[tuple[str, str]]:
    """Names and values, in the order in which a run learns them."""
    yield "version", str(run.version)
    if run.model:
        yield "model", run.model
    yield from plan_lines(run)
    if run.worker is not None or lease is not None:
        yield "worker", ", ".join(part for part in (run.worker, f"token {run.token}", lease) if part)
    newest = run.checkpoints[-1].step if run.checkpoints else 0
    if run.last_step is not None:
        first = f", the first {run.first_step:,} are the parent's" if run.first_step else ""
        yield "checkpoint", f"step {newest:,} of {run.last_step:,}{first}"
    yield from result_lines(run)
    if run.registered is not None:
        yield "registered", f"{run.registered.name} version {run.registered.version}, digest {run.registered.digest}"
    if run.failure is not None:
        which = "before it" if run.state is State.FAILED else "in a row"
        tried = f"; failed attempts {which}: {run.attempts_failed}" if run.attempts_failed else ""
        yield "failure", failure(run.failure) + tried
        if run.failed_from is not None:
            yield "failed from", run.failed_from.value
        if run.failure.detail:
            yield "detail", run.failure.detail
    if run.retry_at is not None:
        yield "again at", moment(run.retry_at)


def plan_lines(run: Run) -> Iterator[tuple[str, str]]:
    """What was asked for: the parent and what differs from it, data, features, agent."""
    if run.continues is not None:
        accepted = ", also if the feature store's values have drifted" if run.continues.accept_drift else ""
        yield "continues", run.continues.parent + accepted
    if run.parent is not None:
        yield from _descent(run, run.parent)
    if run.request is not None:
        yield from _plan(run)


def _descent(run: Run, parent: Parent) -> Iterator[tuple[str, str]]:
    yield "parent", f"{parent_words(parent)}, digest {parent.digest}"
    yield "lineage", descent_words(parent.root, parent.depth)
    changes = changes_between(None if parent.record is None else parent.record.request, run.plan.request)
    if parent.record is None or not changes:
        yield "changes", change_words(parent, changes, 0)
    else:
        for change in changes:
            yield "changed", change_line(change)
    if run.data is not None:
        parts = inheritance(parent, run.plan.request, run.data)
        if parts.carried:
            yield "carried", ", ".join(part.replace("_", " ") for part in parts.carried)
        for reset in parts.reset:
            yield "reset", f"{reset.part.replace('_', ' ')}: {reset.why}"


def _plan(run: Run) -> Iterator[tuple[str, str]]:
    request, feature_config = run.plan
    agent = request.agent
    yield "data", f"{request.symbol} {request.timeframe.value} (from {request.base_timeframe.value})"
    yield "range", f"{moment(request.range.start)} to {moment(request.range.end)}"
    names = ", ".join(definition.name for definition in request.features.feature_definitions if definition.enabled)
    yield "features", f"{names}; version {feature_config.semver}, hash {feature_config.hash}"
    yield "agent", f"{agent.name}, seed {agent.seed}, {agent.n_envs} environments on {agent.device}"
    if run.features is not None:
        answered = "accepted" if run.features.accepted else "not accepted yet"
        until = moment(run.features.deadline)
        asked = run.features.range
        part = f" for {moment(asked.start)} to {moment(asked.end)}" if asked else ""
        yield "asked", f"{run.features.request_id}{part}, attempt {run.features.attempt}, {answered}, until {until}"


def result_lines(run: Run) -> Iterator[tuple[str, str]]:
    """What was found: the frozen data, the test metrics, the verdicts."""
    if data := run.data:
        yield "frozen", f"{data.rows:,} rows ({data.warmup_rows:,} of warm-up dropped), digest {data.digest}"
        for name, part in (("train", data.bounds.training), ("validate", data.bounds.validation)):
            yield name, _bounds(part)
        yield "test", _bounds(data.bounds.test)
        gaps = data.gaps
        after = f", longest {gaps.longest_bars} bars after {moment(gaps.longest_after)}" if gaps.longest_after else ""
        yield "gaps", f"{gaps.count:,}{after}"
        if data.shared is not None:
            yield "drift", f"{span(data.shared.start, data.shared.end)}: {shared_words(data.shared)}"
        for warning in data.warnings:
            yield "warning", warning
    if run.evaluation is not None:
        bands = {band.metric: band for band in run.evaluation.bands}
        for name, value in run.evaluation.metrics.items():
            band = bands.get(name)
            between = f" ({band.confidence:.0%} between {band.low:.6g} and {band.high:.6g})" if band else ""
            yield name, f"{value:.6g}{between}"
        for verdict in (*run.evaluation.gate, *run.evaluation.validations):
            yield "rule", _verdict(verdict)
        if run.evaluation.contest is not None:
            yield "contest", _contest(run.evaluation.contest)


def _bounds(part: PartBounds) -> str:
    return f"{part.last - part.first:,} rows, {moment(part.start)} to {moment(part.end)}"


def _verdict(verdict: Verdict) -> str:
    return f"{'holds' if verdict.passed else 'FAILS'}  {verdict.name}: {verdict.explanation}"


def _contest(contest: Contest) -> str:
    bars = f", {span(contest.start, contest.end)}" if contest.start and contest.end else ""
    return contest_words(contest) + bars
