"""A log that lies elsewhere than before: nothing grows on it, and nobody goes on with it, as if nothing had been."""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa

from training_fsm.domain import events as e
from training_fsm.domain.errors import LeaseLost, OutsideUnavailable
from training_fsm.domain.facts import Failure
from training_fsm.domain.run import Run
from training_fsm.local.postgres import PostgresServer
from training_fsm.ports import Cause
from training_fsm.service.audit_service import verify
from training_fsm.store.audit_reads import PostgresAuditLog
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.store.outbox import PostgresOutbox

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
CAUSE = Cause("test", "m", "c")


@contextmanager
def _opened(url: str) -> Iterator[sa.Engine]:
    engine = make_engine(url, application_name="test")
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    with _opened(migrated_database_url) as engine:
        yield engine


@contextmanager
def _copied(engine: sa.Engine, server: PostgresServer) -> Iterator[sa.Engine]:
    """The database as it is now, under another name: what a backup holds."""
    engine.dispose()  # nobody may be connected to what is copied
    name = f"test_{uuid.uuid4().hex}"
    url = sa.make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{engine.url.database}"')
        try:
            with _opened(engine.url.set(database=name).render_as_string(hide_password=False)) as copy:
                yield copy
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _claim(log: PostgresEventLog, run_id: str) -> Lease:
    claimed = log.claim("worker", 60, run_id)
    assert claimed is not None
    return claimed[1]


def _count(engine: sa.Engine) -> int:
    """Events in the log."""
    with engine.connect() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM events")).scalar_one())


def test_a_worker_from_before_the_restore_is_refused(
    engine: sa.Engine, postgres_server: PostgresServer, live: Callable[..., Run]
) -> None:
    """With the token that the restored head still has, and with one that another worker would have been given."""
    live(engine, "held", 4)
    live(engine, "claimed-later", 4)
    log = PostgresEventLog(engine)
    held = _claim(log, "held")
    with _copied(engine, postgres_server) as copy:
        failed = e.AttemptFailed(reason=Failure(kind="training_error", words="w"), attempt=1, retry_at=NOON)
        known = log.append_fenced(held, [failed], CAUSE)
        lost = _claim(log, "claimed-later")
        highest = _count(engine)

        restored = PostgresEventLog(copy)
        assert PostgresOutbox(copy).settle(highest) == e.LogRestored(
            last_position=highest - 2, published_position=highest
        )
        with pytest.raises(LeaseLost, match=f"the log was restored, and ends before version {known.version}"):
            restored.append_fenced(held, [failed], CAUSE, known.version)
        assert _claim(restored, "claimed-later").token > highest
        assert lost.token == 1, "what it would have been"
        with pytest.raises(LeaseLost):
            restored.append_fenced(lost, [failed], CAUSE, 5)
        with pytest.raises(LeaseLost):
            restored.heartbeat(lost, 60)
        assert verify(PostgresAuditLog(copy), None, None).ok


def test_a_log_in_another_place_takes_no_event_before_it_is_settled(
    engine: sa.Engine, live: Callable[..., Run], runbook: list[str]
) -> None:
    """Everybody waits as in an outage; settled once, it says so once, also where nothing that had gone out is lost."""
    (statement,) = re.findall(r'--command="(.*)"', runbook[4])
    live(engine, "r", 4)
    outbox = PostgresOutbox(engine)
    assert outbox.in_place()
    assert outbox.settle(4) is None, "where it always was"
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    assert not outbox.in_place()
    with pytest.raises(OutsideUnavailable, match="an orchestrator must compare it with Kafka"):
        live(engine, "s", 4)
    assert _count(engine) == 4
    assert outbox.settle(3) == e.LogRestored(last_position=4, published_position=3)
    assert outbox.settle(5) is None
    live(engine, "s", 4)
    assert outbox.restored_at() == (5,)
    assert verify(PostgresAuditLog(engine), None, None).ok


def test_every_orchestrator_reads_its_topics_again_after_a_restore(engine: sa.Engine) -> None:
    """Whoever looks first, and whoever starts later does not."""
    first, second = PostgresOutbox(engine), PostgresOutbox(engine)
    ids = {"requested": "a", "completed": "b"}
    for outbox in (first, second, first):
        assert outbox.remember_topics(ids) == frozenset()
    assert first.settle(7) == e.LogRestored(last_position=0, published_position=7)
    assert first.remember_topics(ids) == frozenset(ids)
    assert second.remember_topics(ids) == frozenset(ids)
    for outbox in (first, second, PostgresOutbox(engine)):
        assert outbox.remember_topics(ids) == frozenset()
    assert second.remember_topics(ids | {"completed": "anew"}) == {"completed"}
