"""What housekeeping and the mending of aliases did, for people and as JSON."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from training_fsm.cli.event_summary import count, moment
from training_fsm.cli.output import UNKNOWN, make_console, print_json, print_json_list, printable
from training_fsm.domain.model import Model
from training_fsm.service.housekeeping_report import Files, report_of
from training_fsm.service.housekeeping_service import Pass


class AliasCompared(Model):
    """An alias as the log has it and as MLflow had it."""

    model: str
    alias: str
    version: int
    mlflow_version: int | None
    moved: bool


def print_pass(done: Pass, *, dry_run: bool, as_json: bool) -> None:
    """A table of what was done, or would be, and what stands in the way."""
    report = report_of(done, dry_run=dry_run)
    if as_json:
        print_json(report)
        return
    console = make_console()
    table = Table(box=None, pad_edge=False)
    for name in ("WHAT", "OF", "NUMBER", "BYTES", "WHY"):
        table.add_column(name, overflow="fold", justify="right" if name in ("NUMBER", "BYTES") else "left")
    for one in report.released:
        table.add_row(_words("release", dry_run), one.run_id, f"{one.files:,}", f"{one.size_bytes:,}", one.why)
    table.add_row(*_file_row(_words("delete", dry_run), report.deleted, "no run needs them any more"))
    if report.held.files:
        table.add_row(*_file_row("held back", report.held, "another run needs them"))
    before = "" if report.commands_before is None else f"before {moment(report.commands_before)}"
    table.add_row(_words("forget", dry_run), "commands", f"{report.commands_pruned:,}", "", before)
    console.print(table)
    for remark in report.remarks:
        console.print(Text(printable(remark), style="yellow"), soft_wrap=True)
    if not report.complete:
        left = f"{count(report.left, 'file')} left for the next pass"
        console.print(Text(left, style="red"), soft_wrap=True)


def print_aliases(aliases: Sequence[AliasCompared], *, dry_run: bool, as_json: bool) -> None:
    """A table of every alias, and which of them was moved, or would be."""
    if as_json:
        print_json_list(aliases)
        return
    console = make_console()
    if not aliases:
        console.print("no model is registered yet")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("MODEL", "ALIAS", "LOG", "MLFLOW", ""):
        table.add_column(name, overflow="fold")
    for one in aliases:
        words = "equal"
        if one.mlflow_version != one.version:
            words = "moved" if one.moved else "would be moved" if dry_run else "not moved"
        there = UNKNOWN if one.mlflow_version is None else str(one.mlflow_version)
        table.add_row(printable(one.model), one.alias, str(one.version), there, words)
    console.print(table)


def _file_row(what: str, files: Files, why: str) -> tuple[str, ...]:
    return what, "stored files", f"{files.files:,}", f"{files.size_bytes:,}", why if files.files else ""


def _words(verb: str, dry_run: bool) -> str:
    done = {"release": "released", "delete": "deleted", "forget": "forgotten"}
    return f"would {verb}" if dry_run else done[verb]
