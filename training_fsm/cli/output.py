"""Tables, cards and JSON on stdout."""

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from pydantic import JsonValue, TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training_fsm.cli.event_summary import failure, moment, summary
from training_fsm.domain.facts import PartBounds, Progress, Verdict
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import UtcTime
from training_fsm.service.audit_log import LoggedEvent
from training_fsm.store.reads import RunDetails, RunSummary

PIPE_COLUMNS = 160
"""Width of a table that no terminal shows."""

_STYLES = {
    State.REGISTERED: "green",
    State.REJECTED: "yellow",
    State.FAILED: "red",
    State.CANCELLED: "dim",
    State.TRAINING: "cyan",
    State.EVALUATING: "cyan",
}
_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


class HistoryEntry(Model):
    """An event of a run, as `history --json` prints it."""

    run_id: str
    version: int
    occurred_at: UtcTime
    event: str
    schema_version: int
    from_state: str | None
    to_state: str | None
    actor: str
    causation_id: str
    correlation_id: str
    position: int
    payload: JsonValue


def history_entry(run_id: str, logged: LoggedEvent) -> HistoryEntry:
    """A row of the log with its payload opened."""
    return HistoryEntry(
        run_id=run_id,
        version=logged.version,
        occurred_at=logged.occurred_at,
        event=logged.type,
        schema_version=logged.schema_version,
        from_state=logged.from_state,
        to_state=logged.to_state,
        actor=logged.actor,
        causation_id=logged.causation_id,
        correlation_id=logged.correlation_id,
        position=logged.position,
        payload=_JSON.validate_json(logged.payload),
    )


def make_console() -> Console:
    """Stdout; markup in names and reasons stays text, and a pipe gets wide lines."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    return console


def printable(text: str) -> str:
    """Without control characters, which could steer the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def print_json(shape: Model, *, indent: int | None = 2) -> None:
    """One document; without indent one line."""
    print(shape.model_dump_json(indent=indent))


def print_json_list(shapes: Sequence[Model]) -> None:
    """One array."""
    print(TypeAdapter(list[Model]).dump_json(list(shapes), indent=2, serialize_as_any=True).decode())


def state_text(state: State) -> Text:
    """A state in its colour."""
    return Text(state.value, style=_STYLES.get(state, ""))


def print_runs(runs: Sequence[RunSummary]) -> None:
    """A table, or a word that there is nothing."""
    console = make_console()
    if not runs:
        console.print("no runs")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("RUN", "STATE", "SINCE", "MODEL", "DATA", "STEP", "VERSION", "WHAT"):
        table.add_column(name, overflow="fold", no_wrap=name in ("STATE", "SINCE"))
    for run in runs:
        step = reached(run)
        table.add_row(
            run.run_id,
            state_text(run.state),
            moment(run.since or run.changed_at),
            printable(run.model),
            f"{run.symbol} {run.timeframe}",
            f"{step:,} of {run.whole_timesteps:,}" if step else f"{run.whole_timesteps:,}",
            str(run.model_version or ""),
            printable(run.failure or run.worker or ""),
        )
    console.print(table)


def reached(run: RunSummary) -> int:
    """The last step that is known of: a heartbeat's, or the newest checkpoint's."""
    return max(run.progress.step if run.progress else 0, run.checkpoint_step or 0)


def print_details(details: RunDetails) -> None:
    """The card of a run as it stands."""
    until, now = details.lease_until, details.read_at
    lease = None
    if until is not None:
        lease = f"lease until {moment(until)}" if until > now else f"lease ran out at {moment(until)}"
    live = [("progress", progress_line(details.progress))] if details.progress and not details.run.ended else []
    since = details.since or details.changed_at
    print_run(details.run, since, [("requested", moment(details.requested_at)), *live], lease)


def speed(progress: Progress) -> str:
    """How fast a training is, and how well it does."""
    parts = [f"{progress.steps_per_s:,.0f} steps/s"]
    if progress.reward is not None:
        parts.append(f"mean episode reward {progress.reward:.4g}")
    if progress.eta_s is not None:
        parts.append(f"{timedelta(seconds=round(progress.eta_s))} to go")
    return ", ".join(parts)


def progress_line(progress: Progress) -> str:
    """How far a training was when it was last heard of."""
    return f"step {progress.step:,} of {progress.total:,}, {speed(progress)}, heard at {moment(progress.at)}"


def print_run(run: Run, since: datetime, first: Iterable[tuple[str, str]] = (), lease: str | None = None) -> None:
    """The card of a folded run."""
    console = make_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("run", run.run_id)
    table.add_row("state", Text.assemble(state_text(run.state), f" since {moment(since)}"))
    for name, value in (*first, *_lines(run, lease)):
        table.add_row(name, printable(value))
    console.print(table)


def _lines(run: Run, lease: str | None) -> Iterator[tuple[str, str]]:
    request, agent = run.request, run.request.agent
    yield "version", str(run.version)
    yield "model", request.model
    yield "data", f"{request.symbol} {request.timeframe.value} (from {request.base_timeframe.value})"
    yield "range", f"{moment(request.range.start)} to {moment(request.range.end)}"
    names = ", ".join(definition.name for definition in request.features.feature_definitions if definition.enabled)
    yield "features", f"{names}; version {run.feature_config.semver}, hash {run.feature_config.hash}"
    yield "agent", f"{agent.name}, seed {agent.seed}, {agent.n_envs} environments on {agent.device}"
    if run.features is not None:
        answered = "accepted" if run.features.accepted else "not accepted yet"
        until = moment(run.features.deadline)
        yield "asked", f"{run.features.request_id}, attempt {run.features.attempt}, {answered}, until {until}"
    if run.worker is not None or lease is not None:
        yield "worker", ", ".join(part for part in (run.worker, f"token {run.token}", lease) if part)
    newest = run.checkpoints[-1].step if run.checkpoints else 0
    yield "checkpoint", f"step {newest:,} of {agent.whole_timesteps:,}"
    yield from _results(run)


def _results(run: Run) -> Iterator[tuple[str, str]]:
    if data := run.data:
        yield "frozen", f"{data.rows:,} rows ({data.warmup_rows:,} of warm-up dropped), digest {data.digest}"
        for name, part in (("train", data.bounds.training), ("validate", data.bounds.validation)):
            yield name, _bounds(part)
        yield "test", _bounds(data.bounds.test)
        gaps = data.gaps
        after = f", longest {gaps.longest_bars} bars after {moment(gaps.longest_after)}" if gaps.longest_after else ""
        yield "gaps", f"{gaps.count:,}{after}"
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
    if run.registered is not None:
        yield "registered", f"{run.registered.name} version {run.registered.version}, digest {run.registered.digest}"
    if run.failure is not None:
        tried = f", {run.attempts_failed} in a row" if run.attempts_failed else ""
        yield "failure", failure(run.failure) + tried
        if run.failed_from is not None:
            yield "failed from", run.failed_from.value
        if run.failure.detail:
            yield "detail", run.failure.detail
    if run.retry_at is not None:
        yield "again at", moment(run.retry_at)


def _bounds(part: PartBounds) -> str:
    return f"{part.last - part.first:,} rows, {moment(part.start)} to {moment(part.end)}"


def _verdict(verdict: Verdict) -> str:
    return f"{'holds' if verdict.passed else 'FAILS'}  {verdict.name}: {verdict.explanation}"


def history_line(logged: LoggedEvent) -> tuple[str, ...]:
    """Version, time, event, from and to, actor and summary of an event."""
    change = logged.to_state or ""
    if logged.from_state != logged.to_state:
        change = f"{logged.from_state or '∅'} → {logged.to_state}"
    return (
        str(logged.version),
        moment(logged.occurred_at),
        logged.type,
        change,
        printable(logged.actor),
        printable(_summary(logged)),
    )


def _summary(logged: LoggedEvent) -> str:
    try:
        return summary(logged.event)
    except ValueError:
        return f"version {logged.schema_version} of this event is newer than this build"


def print_history(events: Iterable[LoggedEvent]) -> None:
    """A table of a run's events."""
    console = make_console()
    table = Table(box=None, pad_edge=False)
    for name in ("#", "TIME", "EVENT", "STATE", "ACTOR", "SUMMARY"):
        right = name == "#"
        table.add_column(name, overflow="fold", no_wrap=name in ("#", "TIME"), justify="right" if right else "left")
    for logged in events:
        table.add_row(*history_line(logged))
    console.print(table)


def print_payloads(events: Iterable[LoggedEvent]) -> None:
    """Each event with all that it says, as indented JSON."""
    console = make_console()
    for logged in events:
        console.print(Text("  ".join(history_line(logged)), style="bold"), soft_wrap=True)
        text = _JSON.dump_json(_JSON.validate_json(logged.payload), indent=2).decode()
        console.print(printable(text), soft_wrap=True)
