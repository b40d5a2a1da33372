"""The command line against a real, migrated database."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from training_fsm.cli.app import app
from training_fsm.store.engine import make_engine
from training_fsm.store.migrate import migrate


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    engine = make_engine(database_url, application_name="test")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def cli(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line against the database; stdout and stderr apart."""
    monkeypatch.setenv("TRAINING_FSM_HOME", str(tmp_path))
    monkeypatch.setenv("TRAINING_FSM_DATABASE_URL", database_url)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(words), input=stdin)

    return run
