"""What the audit found, for people and as JSON."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from training_fsm.cli.event_summary import moment, summary
from training_fsm.cli.output import make_console, print_json, print_run, printable
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run
from training_fsm.domain.timeframe import UtcTime
from training_fsm.service.audit_service import Replayed, Report

FAULTS_MAX = 20


class ReplayedRun(Model):
    """What `audit replay --json` prints."""

    run_id: str
    version: int
    at: UtcTime
    """When the last event of these happened."""
    last_event: str
    since: UtcTime
    """When the run entered the state that it was in."""
    run: Run


class FaultFound(Model):
    """Something that is not as it was written."""

    stream: str
    version: int | None
    position: int | None
    what: str
    expected: str
    found: str


class AuditReport(Model):
    """What `audit verify --json` prints."""

    ok: bool
    streams: int
    events: int
    artifacts: int
    faults: tuple[FaultFound, ...]
    """At most one a stream, the earliest written first."""
    unchecked: str | None
    """Why not every stored file could be looked at."""


def print_replayed(replayed: Replayed, *, as_json: bool) -> None:
    """A run as it was."""
    run, last = replayed.run, replayed.last
    if as_json:
        print_json(
            ReplayedRun(
                run_id=run.run_id,
                version=run.version,
                at=last.occurred_at,
                last_event=last.type,
                since=replayed.since,
                run=run,
            )
        )
        return
    words = f"{last.type} at {moment(last.occurred_at)}: {summary(last.event)}"
    print_run(run, replayed.since, [("last event", words)])


@contextmanager
def telling() -> Iterator[Callable[[Report], None]]:
    """Says on a terminal how far the audit is."""
    console = Console(stderr=True, markup=False, highlight=False)
    with console.status("reading the log") as status:

        def tell(report: Report) -> None:
            status.update(f"{report.events:,} events in {report.streams:,} streams, {report.artifacts:,} files")

        yield tell


def print_report(report: Report, *, as_json: bool) -> None:
    """The first that is off and the others, or that all is well."""
    if as_json:
        faults = tuple(
            FaultFound(
                stream=fault.stream,
                version=fault.version,
                position=fault.position,
                what=fault.what,
                expected=fault.expected,
                found=fault.found,
            )
            for fault in report.faults
        )
        print_json(
            AuditReport(
                ok=report.ok,
                streams=report.streams,
                events=report.events,
                artifacts=report.artifacts,
                faults=faults,
                unchecked=report.unchecked,
            )
        )
        return
    console = make_console()
    for fault in report.faults[:FAULTS_MAX]:
        place = fault.stream if fault.version is None else f"{fault.stream} version {fault.version}"
        words = f"{place}: {fault.what}: expected {fault.expected}, found {fault.found}"
        console.print(Text(printable(words), style="red"), soft_wrap=True)
    if len(report.faults) > FAULTS_MAX:
        console.print(f"… and {len(report.faults) - FAULTS_MAX} more streams")
    if report.unchecked is not None:
        words = f"stored files not all looked at: {' '.join(report.unchecked.split())}"
        console.print(Text(printable(words), style="red"), soft_wrap=True)
    looked_at = f"{report.events:,} events in {report.streams:,} streams, {report.artifacts:,} stored files"
    if report.faults:
        console.print(Text(f"{looked_at}: {len(report.faults)} streams are off", style="red"), soft_wrap=True)
    elif report.ok:
        console.print(Text(f"{looked_at}: all as written", style="green"), soft_wrap=True)
