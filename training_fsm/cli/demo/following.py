"""Follow a run of the demo: its events as they come, a bar while it trains, and, where wanted, its worker's death."""

import os
import signal
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from training_fsm.cli.errors import NotSo
from training_fsm.cli.output import history_line, reached
from training_fsm.domain import events as e
from training_fsm.domain.facts import Progress as Pace
from training_fsm.domain.states import State
from training_fsm.local.stack import LocalStack
from training_fsm.service.audit_log import LoggedEvent
from training_fsm.store.reads import PostgresReads, RunDetails

POLL_S = 0.2
PATIENCE_S = 240.0
KILL_AT_FRACTION = 0.4
PLAIN_STEPS_FRACTION = 0.1
"""Without a terminal, a line whenever so much more is done."""


@dataclass(slots=True)
class Followed:
    """A run as it ended."""

    details: RunDetails
    history: list[LoggedEvent]
    killed_worker: str | None
    killed_at: float | None
    """Seconds of the wall clock since 1970."""

    @property
    def versions(self) -> list[int]:
        """Of its events in the log."""
        return [logged.version for logged in self.history]

    @property
    def events(self) -> list[e.Event]:
        """What happened to it."""
        return [logged.event for logged in self.history]

    def faults_of_end(self) -> list[str]:
        """Why it is no registered model, in words."""
        if self.details.state is State.REGISTERED:
            return []
        why = f": {self.details.failure}" if self.details.failure else ""
        return [f"the run: expected {State.REGISTERED.value}, ended in {self.details.state.value}{why}"]


@dataclass(slots=True)
class _Watcher:
    log: PostgresReads
    run_id: str
    display: "_Display"
    kill: bool
    history: list[LoggedEvent] = field(default_factory=list)
    killed_worker: str | None = None
    killed_at: float | None = None

    def look(self) -> RunDetails | None:
        """Show what is new, and kill the worker when it is time."""
        details = self.log.run(self.run_id)
        if details is None:
            return None
        if details.version > len(self.history):
            for logged in self.log.history(self.run_id, len(self.history)):
                self.history.append(logged)
                self.display.event(logged)
        self.display.progress(details)
        if self.kill and self.killed_worker is None and _time_to_kill(details):
            self._kill(details)
        return details

    def _kill(self, details: RunDetails) -> None:
        worker = details.worker
        assert worker is not None, "it trains"
        pid = int(worker.rpartition("-")[2])
        self.killed_worker, self.killed_at = worker, time.time()
        os.kill(pid, signal.SIGKILL)
        self.display.say(f"kill -9 {pid}   # the worker {worker}, at step {reached(details):,}; its child dies with it")


def follow(stack: LocalStack, log: PostgresReads, run_id: str, console: Console, *, kill: bool) -> Followed:
    """Follow a run to its end, and `kill` its worker on the way. Raises NotSo where that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    with _Display(console) as display:
        watcher = _Watcher(log, run_id, display, kill)
        while time.monotonic() < deadline:
            stack.tend()
            details = watcher.look()
            if details is not None and details.run.ended and len(watcher.history) >= details.version:
                return Followed(details, watcher.history, watcher.killed_worker, watcher.killed_at)
            time.sleep(POLL_S)
    raise NotSo(f"run {run_id} has not ended within {PATIENCE_S:g} s")


def _time_to_kill(details: RunDetails) -> bool:
    return (
        details.state is State.TRAINING
        and details.worker is not None
        and details.checkpoint_step is not None
        and reached(details) >= KILL_AT_FRACTION * (details.last_step or 0)
    )


def _speed(progress: Pace) -> str:
    """As `run watch` says it, but short enough for a bar beside it."""
    reward = "" if progress.reward is None else f"  reward {progress.reward:.2g}"
    eta = "" if progress.eta_s is None else f"  ETA {progress.eta_s:.0f} s"
    return f"  {progress.steps_per_s:,.0f} steps/s{reward}{eta}"


class _Display:
    """Lines, with a bar below them on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=None, words="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._console.print(Text(line, style="bold"), soft_wrap=True)

    def event(self, logged: LoggedEvent) -> None:
        """Every event but the checkpoints, of which there are many: the bar tells of them."""
        if isinstance(logged.event, e.CheckpointSaved):
            return
        version, when, name, change, _, words = history_line(logged)
        line = Text.assemble(f"{version:>4}  {when[11:]}  {name:<24}  ", (change, "cyan"), f"  {words}")
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    def progress(self, details: RunDetails) -> None:
        if details.last_step is None:
            return  # it looks for its parent
        first = details.run.first_step
        step, total = max(reached(details), first), details.last_step
        words = f"{step:,} of {total:,}"
        if details.state is State.TRAINING and details.progress is not None:
            words += _speed(details.progress)
        if details.checkpoint_step is not None:
            words += f"  checkpoint {details.checkpoint_step:,}"
        done, own = step - first, total - first  # the parent's steps are no progress of this run
        self._progress.update(self._task, total=own, completed=done, description=details.state.value, words=words)
        fraction = done / own
        if not self._console.is_terminal and fraction >= self._told + PLAIN_STEPS_FRACTION:
            self._told = fraction
            self._console.print(f"      {words}", soft_wrap=True)
