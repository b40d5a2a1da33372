"""Models, their families and what differs between two of them, for people."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training_fsm.cli.event_summary import bare, count, moment, span
from training_fsm.cli.model_tree import Relative, Row
from training_fsm.cli.output import UNKNOWN, make_console, printable
from training_fsm.cli.run_card import plan_lines, result_lines
from training_fsm.domain.facts import ModelRef
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run
from training_fsm.service.model_comparison import Comparison, Kinship
from training_fsm.store.model_reads import ModelVersion

_NUMBERS = ("STEPS", "RETURN", "SHARPE", "DRAWDOWN")
"""Right-aligned; the last three are of the test part."""
_COLUMNS = {"REGISTERED": 11, "PARENT": 12, "WHAT": 10, "DATA": 6, "RANGE": 13, "FEATURES": 10}
"""Columns that may take several lines, and the width of their longest word."""
_NEEDS = {"REGISTERED": 140, "DATA": 110, "FEATURES": 110}
"""Terminals that are narrower leave these columns out."""
SHOWN_MAX = 300
"""Characters of a value; `--json` has all of it."""


class ModelDetails(Model):
    """What `model show --json` prints."""

    version: ModelVersion
    children: tuple[ModelRef, ...]
    """Versions that continue this one."""
    run: Run
    """The run that it came from, with everything that its events add up to."""


def print_versions(versions: Sequence[ModelVersion]) -> None:
    """A table, or a word that there is nothing."""
    console = make_console()
    if not versions:
        console.print("no models")
        return
    names = ("MODEL", "REGISTERED", "PARENT", "WHAT", "DATA", "RANGE", "FEATURES", *_NUMBERS)
    table = _Table(console, names, _NEEDS | {"DATA": 130, "RANGE": 100})
    for version in versions:
        parent = str(version.parent or version.continues or "")
        table.add({"MODEL": str(version.ref), "PARENT": parent} | _cells(version))
    table.print()


def print_family(rows: Sequence[Row]) -> None:
    """The tree of a model's family; the one that was asked for stands out."""
    table = _Table(make_console(), ("MODEL", "WHAT", "DATA", "RANGE", "FEATURES", *_NUMBERS))
    for lines, relative in rows:
        cells = {"WHAT": _unknown(relative)} if relative.details is None else _cells(relative.details)
        name = f"{lines}{relative.ref}{' ◀' if relative.asked_for else ''}"
        table.add({"MODEL": name} | cells, style="bold" if relative.asked_for else "")
    table.print()


class _Table:
    """Rows of versions, in as many columns as the terminal has room for."""

    def __init__(self, console: Console, names: Sequence[str], needs: Mapping[str, int] = _NEEDS) -> None:
        self._console = console
        self._names = [name for name in names if console.width >= needs.get(name, 0)]
        self._table = Table(box=None, pad_edge=False)
        for name in self._names:
            justify: Literal["left", "right"] = "right" if name in _NUMBERS else "left"
            width = _COLUMNS.get(name)
            self._table.add_column(name, overflow="fold", no_wrap=width is None, min_width=width, justify=justify)

    def add(self, cells: Mapping[str, str], style: str = "") -> None:
        """A row; what it does not say stays empty."""
        self._table.add_row(*(printable(cells.get(name, "")) for name in self._names), style=style)

    def print(self) -> None:
        """On the console that it was made for."""
        self._console.print(self._table)


def _unknown(relative: Relative) -> str:
    """Between a line's root and an ancestor that only its child names, generations may be missing."""
    missing = relative.generation - 1
    return "not in this log" + (f", nor {count(missing, 'generation')} before it" if missing > 0 else "")


def _cells(version: ModelVersion) -> dict[str, str]:
    of_a_zip = version.parent_kind not in (None, "training_fsm")
    marks = (("champion", version.champion), ("candidate", version.candidate), ("from an SB3 zip", of_a_zip))
    return {
        "REGISTERED": moment(version.registered_at),
        "WHAT": ", ".join(word for word, held in marks if held),
        "DATA": f"{version.symbol} {version.timeframe}",
        "RANGE": span(version.data_start, version.data_end),
        "FEATURES": f"{version.feature_semver} {version.feature_hash}",
        "STEPS": UNKNOWN if version.steps is None else f"{version.steps:,}",
        "RETURN": _number(version.test_total_return_fraction, ".2%"),
        "SHARPE": _number(version.test_sharpe, ".4g"),
        "DRAWDOWN": _number(version.test_max_drawdown_fraction, ".2%"),
    }


def _number(value: float | None, shape: str) -> str:
    return UNKNOWN if value is None else format(value, shape)


def print_model(details: ModelDetails) -> None:
    """The card of a version: its place in the world, then that of its run."""
    console = make_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (*_place(details), *plan_lines(details.run), *result_lines(details.run)):
        table.add_row(name, printable(value))
    console.print(table)


def _place(details: ModelDetails) -> Iterator[tuple[str, str]]:
    version, run = details.version, details.run
    marks = [word for word, held in (("champion", version.champion), ("candidate", version.candidate)) if held]
    yield "model", ", ".join([f"{version.model} version {version.version}", *marks])
    yield "registered", moment(version.registered_at) + (f", digest {run.registered.digest}" if run.registered else "")
    yield "run", version.run_id
    if version.steps is not None:
        first = f", the first {run.first_step:,} are the parent's" if run.first_step else ""
        yield "steps", f"{version.steps:,}{first}"
    yield "children", ", ".join(str(child) for child in details.children) or "none"


def print_comparison(comparison: Comparison) -> None:
    """What differs, kind by kind; what is equal is counted."""
    console = make_console()
    a, b = str(comparison.a), str(comparison.b)
    console.print(printable(_kinship_words(comparison.a, comparison.b, comparison.kinship)), soft_wrap=True)
    for compared, thing in (
        (comparison.data, "data field"),
        (comparison.features, "feature field"),
        (comparison.settings, "setting"),
        (comparison.fingerprint, "fingerprint field"),
    ):
        rows = [(difference.field, bare(difference.a), bare(difference.b)) for difference in compared.different]
        _print_section(console, (thing.upper(), a, b), rows, _equal(compared.equal, thing))
    metrics = comparison.metrics
    numbers = [
        (found.metric, _number(found.a, ".6g"), _number(found.b, ".6g"), _number(found.difference, "+.6g"))
        for found in metrics.different
    ]
    _print_section(console, ("TEST METRIC", a, b, "DIFFERENCE"), numbers, _equal(metrics.equal, "test metric"))
    if metrics.different and not metrics.same_test_bars:
        console.print("the two were not tested on the same bars")


def _print_section(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], equal: str) -> None:
    console.print()
    if rows:
        table = Table(box=None, pad_edge=False)
        for name in head:
            table.add_column(printable(name), overflow="fold")
        for row in rows:
            table.add_row(*(printable(_short(cell)) for cell in row))
        console.print(table)
    console.print(Text(equal, style="dim"))


def _equal(number: int, what: str) -> str:
    return f"{count(number, what)} {'is' if number == 1 else 'are'} equal"


def _short(value: str) -> str:
    most = 12 if re.fullmatch("[0-9a-f]{64}", value) else SHOWN_MAX
    return value if len(value) <= most else f"{value[:most]}…"


def _kinship_words(a: ModelRef, b: ModelRef, kin: Kinship) -> str:
    """How two models are related."""
    match kin.generations_a, kin.generations_b:
        case None, _:
            return f"{a} and {b} have no common ancestor"
        case 0, 0:
            return f"{a} is compared with itself"
        case 0, int(down):
            return f"{b} descends from {a}, {count(down, 'generation')} down"
        case int(down), 0:
            return f"{a} descends from {b}, {count(down, 'generation')} down"
        case 1, 1:
            return f"{a} and {b} are siblings, both continue {kin.common_ancestor}"
        case _:
            return (
                f"{a} and {b} both descend from {kin.common_ancestor}, "
                f"{kin.generations_a} and {kin.generations_b} generations down"
            )
