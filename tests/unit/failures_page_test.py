"""docs/failures.md speaks of everything that can go wrong."""

import re
from pathlib import Path
from typing import get_args

from training_fsm.domain.facts import Failure

PAGE = (Path(__file__).parents[2] / "docs" / "failures.md").read_text(encoding="utf-8")


def test_every_kind_of_failure_has_a_row() -> None:
    """A user who reads a kind on the card finds what to do; a kind that there is no more is gone."""
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(get_args(Failure.model_fields["kind"].annotation))


def test_every_row_says_what_to_do() -> None:
    """No cell of the table of kinds is empty."""
    for row in re.findall(r"^\| `\w+` \|.*$", PAGE, re.MULTILINE):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4, row
        assert all(cells), row
