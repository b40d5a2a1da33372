import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from training_fsm.domain import events as e
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.facts import Progress
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.ports import Cause, InboxEntry
from training_fsm.service.audit_service import replay
from training_fsm.store import reads as reads_module
from training_fsm.store.audit_reads import PostgresAuditLog
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.store.reads import PostgresReads

Live = Callable[..., Run]


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    engine = make_engine(migrated_database_url, application_name="test")
    yield engine
    engine.dispose()


def test_a_run_is_read_as_it_stands(engine: sa.Engine, live: Live) -> None:
    """What `show` tells comes from the folded run, its head and the event that brought it into its state."""
    run = live(engine, "run-one", 9)
    reads = PostgresReads(engine)
    details = reads.run("run-one")
    assert details is not None
    assert details.run == run
    assert (details.state, details.version, details.token) == (State.TRAINING, 9, 1)
    assert (details.checkpoint_step, details.last_step) == (10_240, 10_240)
    assert details.lease_until is not None
    assert details.lease_until > details.read_at
    ready = next(logged for logged in reads.history("run-one") if logged.type == "features_ready")
    assert details.since == ready.occurred_at
    assert reads.run("run-on") is None


def test_progress_comes_from_the_last_heartbeat(engine: sa.Engine, live: Live) -> None:
    """A heartbeat's progress is there until the next one."""
    live(engine, "r", 8)
    told = Progress(step=4000, total=10_240, steps_per_s=800.5, reward=None, eta_s=7.5, at=datetime.now(UTC))
    PostgresEventLog(engine).heartbeat(Lease("r", 1, "worker-1"), 60, told)
    details = PostgresReads(engine).run("r")
    assert details is not None
    assert details.progress == told


def test_runs_are_listed_by_state_the_newest_first(engine: sa.Engine, live: Live) -> None:
    """A list can be narrowed by state and by number."""
    live(engine, "old", 3)
    live(engine, "middle", 9)
    live(engine, "new", 3)
    reads = PostgresReads(engine)
    assert [run.run_id for run in reads.runs(None, 20)] == ["new", "middle", "old"]
    assert [run.run_id for run in reads.runs(State.TRAINING, 20)] == ["middle"]
    assert [run.run_id for run in reads.runs(None, 1)] == ["new"]


def test_a_beginning_finds_runs_literally(engine: sa.Engine, live: Live) -> None:
    """A whole id wins over longer ones, and `_` or `%` match only themselves."""
    for run_id in ("ab", "abc", "a_c"):
        live(engine, run_id, 2)
    reads = PostgresReads(engine)
    assert reads.matching("ab") == ("ab",)
    assert reads.matching("a") == ("a_c", "ab", "abc")
    assert reads.matching("a", limit=2) == ("a_c", "ab")
    assert reads.matching("a_") == ("a_c",)
    assert reads.matching("%") == ()


def test_history_crosses_its_batches(engine: sa.Engine, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event comes once and in order, however small the batches, and from any version on."""
    monkeypatch.setattr(reads_module, "HISTORY_BATCH", 2)
    live(engine, "r")
    reads = PostgresReads(engine)
    events = list(reads.history("r"))
    assert [logged.version for logged in events] == list(range(1, 14))
    assert [logged.version for logged in reads.history("r", 11)] == [12, 13]
    assert all(logged.hash == logged.computed_hash for logged in events)


def test_a_command_tells_what_became_of_it(engine: sa.Engine) -> None:
    """The sender finds the reason of a refusal under source and command id."""
    entry = InboxEntry("cli", "1", "cancel_run", "r", "refused", "run_id: there is no run r")
    with PostgresEventLog(engine).begin() as unit:
        unit.refuse(entry, Cause("orchestrator", "1", "1"))
    reads = PostgresReads(engine)
    outcome = reads.command("cli", "1")
    assert outcome is not None
    assert (outcome.outcome, outcome.reason) == ("refused", entry.reason)
    assert reads.command("cli", "2") is None


def test_replay_shows_each_state_as_it_was(
    engine: sa.Engine, live: Live, life: Callable[[str], tuple[e.Event, ...]]
) -> None:
    """Folding up to a version or a time gives the run of that moment, before the first event none."""
    run = live(engine, "r")
    log = PostgresAuditLog(engine)
    whole = replay(log, "r")
    assert whole is not None
    assert whole.run.model_dump_json() == run.model_dump_json()
    fourth = replay(log, "r", version=4)
    assert fourth is not None
    assert (fourth.run.version, fourth.run.state, fourth.since) == (4, State.TRAINING, fourth.last.occurred_at)
    assert replay(log, "r", at=fourth.last.occurred_at) == fourth
    later = replay(log, "r", version=6)
    assert later is not None
    assert later.since == fourth.since
    assert replay(log, "r", at=datetime(2020, 1, 1, tzinfo=UTC)) is None


def test_a_snapshot_does_not_see_what_is_written_later(engine: sa.Engine, live: Live) -> None:
    """An audit that runs while events are appended reads log and heads of one moment."""
    live(engine, "r", 3)
    log = PostgresAuditLog(engine)
    with log.snapshot() as snapshot:
        before = [logged.version for logged in snapshot.logged(None)]
        writer = threading.Thread(target=live, args=(engine, "later", 9))
        writer.start()
        writer.join()
        assert [logged.version for logged in snapshot.logged(None)] == before
        assert snapshot.heads(["later"]) == {}


def test_an_absent_postgres_is_said_so() -> None:
    """Nobody listens there: the error names the service."""
    engine = make_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", application_name="test")
    with pytest.raises(OutsideUnavailable, match="postgres"):
        PostgresReads(engine).run("r")
