"""Bring a database to this build's schema, from a checkout or an installed wheel."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from training_fsm.store.errors import domain_errors

_MIGRATION_LOCK = 0x74667368
_PACKAGE = Path(__file__).resolve().parents[1]


def _config() -> Config:
    shipped = _PACKAGE / "migrations"  # a wheel carries them inside the package, a checkout beside it
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(shipped if shipped.is_dir() else _PACKAGE.parent / "migrations"))
    return config


def migrate(engine: sa.Engine, revision: str = "head") -> None:
    """Upgrade to `revision`; two at once wait for each other."""
    config = _config()
    with domain_errors(), engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(engine: sa.Engine, revision: str = "base") -> None:
    """Downgrade to `revision`; the log is lost on the way to base."""
    config = _config()
    with domain_errors(), engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def pending(engine: sa.Engine) -> bool:
    """Whether the database is behind this build."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with domain_errors(), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() != head
