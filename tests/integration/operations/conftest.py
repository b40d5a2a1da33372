"""The runbook as the docs have it."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"


@pytest.fixture(scope="session")
def runbook() -> list[str]:
    """The commands of the section on backup and restore, block by block."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Backup and restore\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
