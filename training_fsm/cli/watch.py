"""Follow a run: its events as they come, and a bar between checkpoints."""

import time
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from training_fsm.cli.errors import NotSo, complain
from training_fsm.cli.output import (
    history_entry,
    history_line,
    make_console,
    print_json,
    reached,
    speed,
    state_text,
)
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.states import State
from training_fsm.messaging.command_sender import Sent
from training_fsm.store.reads import PostgresReads, RunDetails

POLL_S = 0.5
SILENCE_S = 10.0
"""After so long without an answer a user is told what may be missing."""
INTERRUPTED = 130


def await_outcome(log: PostgresReads, sent: Sent) -> None:
    """Wait until the command was read. Raises NotSo with the reason where it was refused."""
    told, patience_ends = False, time.monotonic() + SILENCE_S
    while (outcome := log.command(sent.source, sent.command_id)) is None:
        time.sleep(POLL_S)
        if not told and time.monotonic() >= patience_ends:
            complain([f"no orchestrator has read the command for {SILENCE_S:g} s; is one running? still waiting"])
            told = True
    if outcome.outcome == "refused":
        raise NotSo(f"refused: {outcome.reason}")


def follow(log: PostgresReads, run_id: str, *, as_json: bool) -> RunDetails:
    """Print events until the run has ended, and return it as it ended; an outage of Postgres is waited out."""
    shown = 0
    away = False
    with _Bar(make_console(), shown=not as_json) as bar:
        while True:
            try:
                details = log.run(run_id)
                if details is None:
                    raise NotSo(f"there is no run {run_id}")
                for logged in log.history(run_id, shown) if details.version > shown else ():
                    shown = logged.version
                    if as_json:
                        print_json(history_entry(run_id, logged), indent=None)
                    else:
                        bar.say(history_line(logged))
                away = False
            except OutsideUnavailable as error:
                if not away:
                    complain([f"waiting: {' '.join(str(error).split())}"])
                away = True
            else:
                bar.show(details)
                if details.run.ended and shown >= details.version:
                    return details
            time.sleep(POLL_S)


def exit_with(details: RunDetails) -> None:
    """Exit 0 for a registered model, 1 for any other end, with the reason."""
    if details.state is State.REGISTERED:
        return
    raise NotSo(f"run {details.run_id} ended in {details.state.value}{_reason(details)}")


def _reason(details: RunDetails) -> str:
    run = details.run
    if run.failure is not None:
        return f": {run.failure.words}"
    if run.evaluation is not None and not run.evaluation.passed:
        rules = (*run.evaluation.gate, *run.evaluation.validations)
        return ": " + ", ".join(verdict.explanation for verdict in rules if not verdict.passed)
    return ""


class _Bar:
    """Lines of events, with a bar below them on a terminal."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind is KeyboardInterrupt:
            complain(["stopped watching; the run goes on"])
            raise typer.Exit(INTERRUPTED) from error

    def say(self, line: tuple[str, ...]) -> None:
        version, when, event, change, _actor, words = line
        self._console.print(Text(f"{version:>4}  {when}  {event:<24} {change}  {words}"), soft_wrap=True)

    def show(self, details: RunDetails) -> None:
        first, last = details.run.first_step, details.last_step
        step = max(reached(details), first)
        words = "" if last is None else f"{step:,} of {last:,} steps"
        if details.state is State.TRAINING and details.progress is not None:
            words += f", {speed(details.progress)}"
        total = None if last is None else last - first
        if self._task is None:
            self._task = self._progress.add_task("", total=total, words=words)
        self._progress.update(
            self._task,
            total=total,
            completed=step - first,
            description=state_text(details.state).plain,
            words=words,
        )
