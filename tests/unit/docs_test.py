"""The docs say what the code says."""

import re
import runpy
from pathlib import Path

import pytest

from training_fsm.cli.request_file import read_request
from training_fsm.domain.states import State
from training_fsm.local.stack import EXAMPLES

ROOT = Path(__file__).parents[2]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_diagram_is_that_of_the_machine() -> None:
    """architecture.md shows the arrows that there are; `make docs` brings it up to date."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert GENERATE["states"]() in page


def test_settings_page_is_that_of_the_settings() -> None:
    """settings.md has every setting with its default; `make docs` brings it up to date."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == GENERATE["settings"]()


def test_every_setting_says_what_it_is() -> None:
    """A row without words in settings.md is a setting nobody can set."""
    assert [line for line in GENERATE["settings"]().splitlines() if line.endswith("|  |")] == []


def test_readme_has_every_state() -> None:
    """A state that users may see is in the README's table."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [state for state in State if state is not State.NEW and f"| {state.value} |" not in readme] == []


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_example_request_is_valid(example: Path) -> None:
    """What is shipped to be copied is accepted as it is."""
    assert read_request(str(example)).request.evaluation.gate


def test_requests_on_the_pages_are_valid(tmp_path: Path) -> None:
    """What README and docs show as a request is accepted as it is."""
    blocks = [
        block
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        if "type: request_training" in block
    ]
    assert blocks
    for block in blocks:
        path = tmp_path / "request.yaml"
        path.write_text(block, encoding="utf-8")
        assert read_request(str(path)).request
