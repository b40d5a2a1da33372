"""Tables, cards and JSON on stdout."""

import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from pydantic import JsonValue, TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training_fsm.cli.event_summary import moment, summary
from training_fsm.cli.run_card import card_lines
from training_fsm.domain.facts import Progress
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import UtcTime
from training_fsm.service.audit_log import LoggedEvent
from training_fsm.store.reads import RunDetails, RunSummary

PIPE_COLUMNS = 160
"""Width of a table that no terminal shows."""

UNKNOWN = "-"
"""Stands where something is not known, or not yet."""

_STYLES = {
    State.REGISTERED: "green",
    State.REJECTED: "yellow",
    State.PAUSED: "yellow",
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
            printable(run.model or UNKNOWN),
            f"{run.symbol} {run.timeframe}".strip() or UNKNOWN,
            " of ".join(f"{number:,}" for number in (step, run.last_step) if number),
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
    for name, value in (*first, *card_lines(run, lease)):
        table.add_row(name, printable(value))
    console.print(table)


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
