"""The migrated schema: there and back again, and equal to what the code believes."""

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from training_fsm.store.engine import make_engine
from training_fsm.store.migrate import downgrade, migrate, pending
from training_fsm.store.schema import allowed_transitions, metadata

CHECKS = sa.text(
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' AND connamespace = "
    "current_schema()::regnamespace ORDER BY conname"
)
OBJECTS = sa.text(
    """
    SELECT 'column', table_name || '.' || column_name, data_type || is_nullable || coalesce(column_default, '')
    FROM information_schema.columns WHERE table_schema = current_schema() AND table_name <> 'alembic_version'
    UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes
    WHERE schemaname = current_schema() AND tablename <> 'alembic_version'
    UNION ALL SELECT 'view', viewname, definition FROM pg_views WHERE schemaname = current_schema()
    UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'function', proname, prosrc FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
    UNION ALL SELECT 'check', conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = current_schema()::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    ORDER BY 1, 2, 3
    """
)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """An empty database."""
    engine = make_engine(database_url, application_name="test")
    yield engine
    engine.dispose()


def _rows(engine: sa.Engine, statement: sa.TextClause) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(statement)]


def test_up_down_up_gives_the_same_schema(engine: sa.Engine) -> None:
    """What a downgrade leaves behind neither disturbs nor changes the next upgrade."""
    assert pending(engine)
    migrate(engine)
    first = _rows(engine, OBJECTS)
    assert not pending(engine)
    assert {row[1] for row in first} >= {"events.payload", "runs", "events_append_only", "refuse_change"}
    downgrade(engine)
    assert pending(engine)
    assert _rows(engine, OBJECTS) == []
    migrate(engine)
    assert _rows(engine, OBJECTS) == first
    migrate(engine)
    assert _rows(engine, OBJECTS) == first


def test_the_migrated_schema_is_the_one_that_the_code_declares(engine: sa.Engine) -> None:
    """Tables, columns, types, indexes and comments do not differ."""
    migrate(engine)
    with engine.connect() as connection:
        # SQLAlchemy cannot reflect a CHECK that is not valid yet.
        connection.execute(sa.text("ALTER TABLE events VALIDATE CONSTRAINT events_transition"))
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_the_checks_are_those_that_the_code_declares(engine: sa.Engine, migrated_database_url: str) -> None:
    """Alembic does not compare CHECKs: here a database made from the metadata has the same ones, by name and text."""
    metadata.create_all(engine)
    migrated = make_engine(migrated_database_url, application_name="test")
    declared, found = dict(_rows(engine, CHECKS)), dict(_rows(migrated, CHECKS))
    migrated.dispose()
    assert set(_transitions(found.pop("events_transition"))) == set(allowed_transitions())
    assert len(_transitions(declared["events_transition"])) == len(allowed_transitions())
    del declared["events_transition"]
    assert found == declared
    assert set(found) == {"commands_outcome", "events_size"}


def _transitions(definition: object) -> list[str]:
    return re.findall(r"'([A-Z_]*/[a-z_]+/[A-Z_]*)'", str(definition))
