"""Leases: one worker a run, and a stale one can write nothing."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from training_fsm.domain import events as e
from training_fsm.domain.errors import Conflict, LeaseLost, TransitionRefused
from training_fsm.domain.facts import Failure
from training_fsm.domain.states import State
from training_fsm.ports import Cause
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import Lease, PostgresEventLog

Life = Callable[[str], tuple[e.Event, ...]]
CAUSE = Cause("test", "m", "c")
CANCEL = e.RunCancelled(actor="ann", why="typo")
FAULT = Failure(kind="outside_unavailable", words="mlflow is away")


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    engine = make_engine(migrated_database_url, application_name="test")
    yield engine
    engine.dispose()


@pytest.fixture
def log(engine: sa.Engine) -> PostgresEventLog:
    """The event store on it."""
    return PostgresEventLog(engine)


def _claimable(log: PostgresEventLog, life: Life, *run_ids: str) -> None:
    with log.begin() as unit:
        for run_id in run_ids:
            unit.append(run_id, life(run_id)[:4], CAUSE)


def _claim(log: PostgresEventLog, worker: str, lease_s: float = 60, run_id: str | None = None) -> Lease:
    claimed = log.claim(worker, lease_s, run_id)
    assert claimed is not None
    return claimed[1]


def _expire(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE run_heads SET lease_until = clock_timestamp() - interval '1 second'"))


def _versions(engine: sa.Engine, run_id: str) -> list[str]:
    with engine.connect() as connection:
        found = sa.text("SELECT type FROM events WHERE stream = :stream ORDER BY version")
        return list(connection.execute(found, {"stream": f"run-{run_id}"}).scalars())


def test_many_workers_claim_each_run_once(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """Eight at once for twenty runs: none is left, none is taken twice."""
    _claimable(log, life, *(f"r{number}" for number in range(20)))
    taken: list[Lease] = []
    conflicts = Counter[str]()

    def work(worker: str) -> None:
        while True:
            try:
                claimed = log.claim(worker, 60)
            except Conflict:
                conflicts[worker] += 1
                continue
            if claimed is None:
                return
            taken.append(claimed[1])

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # SKIP LOCKED hides a run that another one is just taking: whoever finds none may be too early.
    work("last")
    assert sorted(lease.run_id for lease in taken) == sorted(f"r{number}" for number in range(20))
    assert {lease.token for lease in taken} == {1}
    assert not conflicts


def test_a_claim_is_an_event_and_raises_the_token(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """The log says who held a run when."""
    _claimable(log, life, "r")
    claimed = log.claim("w1", 60)
    assert claimed is not None
    run, lease = claimed
    assert (run.token, run.worker, lease) == (1, "w1", Lease("r", 1, "w1"))
    assert _versions(engine, "r")[-1] == "run_claimed"
    assert log.claim("w2", 60) is None
    assert log.claim("w2", 60, "r") is None


def test_a_named_run_is_claimed_and_no_other(log: PostgresEventLog, life: Life) -> None:
    """`worker --once --run ID` takes that one."""
    _claimable(log, life, "a", "b")
    assert log.claim("w", 60, "c") is None
    assert _claim(log, "w", run_id="b").run_id == "b"
    assert log.claim("w", 60, "b") is None
    assert _claim(log, "w").run_id == "a"


def test_only_work_is_claimed(log: PostgresEventLog, life: Life) -> None:
    """A run that waits, or has ended, is nothing for a worker."""
    with log.begin() as unit:
        unit.append("waits", life("waits")[:2], CAUSE)
        unit.append("ended", [*life("ended")[:4], CANCEL], CAUSE)
    assert log.claim("w", 60) is None


def test_an_expired_lease_is_taken_over_and_the_old_holder_can_write_nothing(
    engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """The token of the second claim shuts the first one out, of appends and of heartbeats."""
    _claimable(log, life, "r")
    old = _claim(log, "old")
    _expire(engine)
    new = _claim(log, "new")
    assert new.token == 2
    before = _versions(engine, "r")
    with pytest.raises(LeaseLost, match="run r: token 1 is no longer the run's"):
        log.append_fenced(old, life("r")[5:6], CAUSE)
    with pytest.raises(LeaseLost, match="token 1"):
        log.heartbeat(old, 60)
    with pytest.raises(LeaseLost):
        log.append_fenced(Lease("nobody", 1, "w"), [CANCEL], CAUSE)
    assert _versions(engine, "r") == before
    assert log.append_fenced(new, life("r")[5:6], CAUSE).version == len(before) + 1


def test_a_claim_between_reading_and_writing_shuts_the_old_holder_out(
    engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """The fence is in the write itself: what was read before does not help."""
    _claimable(log, life, "r")
    old = _claim(log, "old")
    _expire(engine)
    slow = log.begin()
    unit = slow.__enter__()
    assert unit.runs(["r"])["r"].token == old.token
    unit.append("r", life("r")[5:6], CAUSE)
    _claim(log, "new")
    with pytest.raises(Conflict):
        slow.__exit__(None, None, None)
    assert _versions(engine, "r")[-2:] == ["run_claimed", "run_claimed"]


def test_expiry_alone_takes_nothing_away(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """Until somebody else claims, the holder goes on; a heartbeat brings the lease back to life."""
    _claimable(log, life, "r")
    lease = _claim(log, "w")
    _expire(engine)
    assert log.append_fenced(lease, life("r")[5:6], CAUSE).state is State.TRAINING
    log.heartbeat(lease, 60)
    assert log.claim("other", 60) is None


def test_a_heartbeat_brings_news_of_the_run(log: PostgresEventLog, life: Life) -> None:
    """That is how a worker hears of a cancel; the lease of an ended run is not prolonged."""
    _claimable(log, life, "r")
    lease = _claim(log, "w")
    assert log.heartbeat(lease, 60).state is State.TRAINING
    with log.begin() as unit:
        unit.append("r", [CANCEL], CAUSE)
    assert log.heartbeat(lease, 60).state is State.CANCELLED


def test_a_cancel_before_the_worker_s_append_wins(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """The worker is told that its event does not fit any more."""
    _claimable(log, life, "r")
    lease = _claim(log, "w")
    with log.begin() as unit:
        unit.append("r", [CANCEL], CAUSE)
    with pytest.raises(TransitionRefused, match="data_frozen does not fit a run in CANCELLED"):
        log.append_fenced(lease, life("r")[5:6], CAUSE)
    assert _versions(engine, "r")[-1] == "run_cancelled"


def test_a_cancel_after_the_worker_s_append_cancels_what_is_there(
    engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """A cancel decided on what was before is a conflict; decided again, it ends the run."""
    _claimable(log, life, "r")
    lease = _claim(log, "w")
    slow = log.begin()
    slow.__enter__().append("r", [CANCEL], CAUSE)
    log.append_fenced(lease, life("r")[5:6], CAUSE)
    with pytest.raises(Conflict):
        slow.__exit__(None, None, None)
    with log.begin() as unit:
        unit.append("r", [CANCEL], CAUSE)
    assert _versions(engine, "r")[-2:] == ["data_frozen", "run_cancelled"]
    with engine.connect() as connection:
        head = connection.execute(sa.text("SELECT state, lease_until, worker FROM run_heads")).one()
    assert tuple(head) == ("CANCELLED", None, None)


def test_a_failed_attempt_gives_the_run_back_but_not_before_its_time(
    engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """The lease is released at once; the next claim waits for `retry_at`."""
    _claimable(log, life, "r")
    lease = _claim(log, "w")
    retry_at = log.now() + timedelta(seconds=0.8)
    log.append_fenced(lease, [e.AttemptFailed(reason=FAULT, attempt=1, retry_at=retry_at)], CAUSE)
    assert log.claim("early", 60) is None
    assert log.heartbeat(lease, 60).state is State.TRAINING
    assert log.claim("early", 60) is None
    deadline = time.monotonic() + 20
    while (claimed := log.claim("next", 60)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert claimed is not None
    assert claimed[1].token == 2
    with engine.connect() as connection:
        claimed_at = connection.execute(
            sa.text("SELECT max(occurred_at) FROM events WHERE type = 'run_claimed'")
        ).scalar_one()
    assert claimed_at >= retry_at


def test_the_longest_due_run_is_claimed_first(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """Those that were asked for first come first, before those that failed and are due again."""
    for run_id in ("first", "second", "third"):
        _claimable(log, life, run_id)
    lease = _claim(log, "w", run_id="first")
    log.append_fenced(lease, [e.AttemptFailed(reason=FAULT, attempt=1, retry_at=log.now())], CAUSE)
    assert [_claim(log, "w").run_id for _ in range(3)] == ["second", "third", "first"]


def test_a_run_that_goes_on_to_evaluation_stays_with_its_worker(log: PostgresEventLog, life: Life) -> None:
    """The lease covers both kinds of work; the end releases it."""
    _claimable(log, life, "r")
    lease = _claim(log, "w")
    for event in life("r")[5:10]:
        run = log.append_fenced(lease, [event], CAUSE)
    assert run.state is State.EVALUATING
    assert log.claim("other", 60) is None
    for event in life("r")[10:]:
        run = log.append_fenced(lease, [event], CAUSE)
    assert run.state is State.REGISTERED
    assert log.claim("other", 60) is None
