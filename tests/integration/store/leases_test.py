"""Leases: one worker a run, and a stale one can write nothing."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
import sqlalchemy as sa

from training_fsm.domain import events as e
from training_fsm.domain.errors import Conflict, LeaseLost, OutsideUnavailable, TransitionRefused
from training_fsm.domain.facts import Failure
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.process import free_port
from training_fsm.ports import Cause
from training_fsm.settings import Settings
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.store.unit_of_work import PostgresUnitOfWork
from training_fsm.worker.child_process import ChildProcess
from training_fsm.worker.run_work import work_on
from training_fsm.worker.session import Outside, RunSession

Life = Callable[[str], tuple[e.Event, ...]]
CAUSE = Cause("test", "m", "c")
CANCEL = e.RunCancelled(actor="ann", why="typo")
FAULT = Failure(kind="outside_unavailable", words="mlflow is away")
ANOTHER_S_EVENT = sa.text(
    """
    INSERT INTO events (stream, version, type, schema_version, occurred_at, from_state, to_state, actor,
                        causation_id, correlation_id, payload, previous_hash, hash)
    SELECT stream, version + 1, type, schema_version, occurred_at, from_state, to_state, actor,
           causation_id, correlation_id, payload, previous_hash, hash
    FROM events WHERE stream = 'run-r' ORDER BY version DESC LIMIT 1
    """
)
ANOTHER_S_HEAD = sa.text(
    "UPDATE run_heads SET version = 5, run = jsonb_set(run::jsonb, '{version}', '5')::json WHERE run_id = 'r'"
)


class Overtaken(PostgresEventLog):
    """An event log whose claim tries again only once the other writer is done."""

    def __init__(self, engine: sa.Engine, done: threading.Event) -> None:
        super().__init__(engine)
        self._done = done
        self.tries = 0

    @contextmanager
    def begin(self) -> Iterator[PostgresUnitOfWork]:
        """As ever, the first time."""
        self.tries += 1
        assert self.tries == 1 or self._done.wait(60)
        with super().begin() as unit:
            yield unit


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


def _until_it_waits(engine: sa.Engine, claim: Future[tuple[Run, Lease] | None]) -> None:
    """Until a claim waits for another transaction, or has ended."""
    waits = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()")
    deadline = time.monotonic() + 30
    with engine.connect() as connection:
        while not claim.done() and not connection.execute(waits).scalar_one():
            assert time.monotonic() < deadline, "the claim neither waits nor ends"
            time.sleep(0.01)


def test_a_claim_and_commands_for_many_runs_do_not_wait_for_each_other(
    migrated_database_url: str, engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """Who claims while an orchestrator writes leaves its runs alone, and neither of the two has to try again."""
    _claimable(log, life, "a", "b")
    orchestrator = make_engine(migrated_database_url, application_name="orchestrator")
    claims: list[Future[tuple[Run, Lease] | None]] = []
    with ThreadPoolExecutor(1) as worker:

        @sa.event.listens_for(orchestrator, "after_cursor_execute")
        def claim_behind_the_events(*written: object) -> None:
            if "INSERT INTO events" in str(written[2]):
                claims.append(worker.submit(log.claim, "w", 60))
                _until_it_waits(engine, claims[0])
                assert claims[0].done(), "the claim waits for the events, and holds a head that is written next"

        with PostgresEventLog(orchestrator).begin() as unit:
            for run_id in ("a", "b"):
                unit.append(run_id, [e.RunExtended(actor="ann", why="more", additional_timesteps=1)], CAUSE)
        assert [claim.result() for claim in claims] == [None]
    orchestrator.dispose()
    assert {_claim(log, "w").run_id, _claim(log, "w").run_id} == {"a", "b"}


def test_a_claim_that_loses_to_another_writer_is_tried_again(
    engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """An event that gets in between costs a claim a try, and not a worker its life."""
    _claimable(log, life, "r")
    done = threading.Event()
    overtaken = Overtaken(engine, done)
    with ThreadPoolExecutor(1) as worker:
        try:
            with engine.begin() as other:
                other.execute(ANOTHER_S_EVENT)
                claim = worker.submit(overtaken.claim, "w", 60)
                _until_it_waits(engine, claim)
            with engine.begin() as other:
                other.execute(ANOTHER_S_HEAD)
        finally:
            done.set()
        claimed = claim.result()
    assert overtaken.tries == 2
    assert claimed is not None
    assert (claimed[0].version, claimed[1]) == (6, Lease("r", 1, "w"))


def test_a_claim_that_loses_every_try_is_for_later(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """The worker is told what it waits out anyway."""
    _claimable(log, life, "r")
    with engine.begin() as connection:
        connection.execute(ANOTHER_S_EVENT)
    with pytest.raises(OutsideUnavailable, match="postgres: no claim got through: duplicate key"):
        log.claim("w", 60)


def test_a_failure_during_an_outage_of_postgres_is_recorded_after_it(
    migrated_database_url: str,
    engine: sa.Engine,
    log: PostgresEventLog,
    life: Life,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An attempt that failed while nothing could be recorded has failed all the same."""
    from training_fsm.client.artifact_store import MlflowArtifacts
    from training_fsm.client.mlflow_connection import MlflowConnection
    from training_fsm.client.mlflow_models import MlflowModels
    from training_fsm.client.mlflow_tracking import MlflowTracking
    from training_fsm.service.model_lifecycle_service import ModelLifecycleService

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _claimable(log, life, "r")
    lease = _claim(log, "w")
    run = log.append_fenced(lease, life("r")[5:6], CAUSE)
    nobody, tries = free_port(), list[object]()
    mlflow = MlflowConnection(f"http://127.0.0.1:{nobody}")
    through = make_engine(migrated_database_url, application_name="worker")

    @sa.event.listens_for(through, "do_connect")
    def away_at_first(_dialect: object, record: object, _args: object, parameters: dict[str, object]) -> None:
        tries.append(record)
        parameters["port"] = nobody if len(tries) <= 2 else engine.url.port

    outside = Outside(
        PostgresEventLog(through),
        MlflowTracking(mlflow),
        MlflowArtifacts(mlflow),
        ModelLifecycleService(MlflowModels(mlflow)),
    )
    no_child = cast(ChildProcess, None)  # the work fails before it is given an order
    settings = Settings(home=tmp_path, lease_s=900, heartbeat_s=300)  # no heartbeat is among the tries
    work_on(RunSession(outside, settings, (run, lease), no_child, queue.SimpleQueue(), threading.Event()))
    through.dispose()
    failed = _last(engine)
    assert (failed.reason.kind, failed.reason.service, failed.attempt) == ("outside_unavailable", "mlflow", 1)


def _last(engine: sa.Engine) -> e.AttemptFailed:
    with engine.connect() as connection:
        found = sa.text("SELECT type, payload::text AS payload FROM events ORDER BY position DESC LIMIT 1")
        row = connection.execute(found).one()
    assert row.type == "attempt_failed"
    return e.AttemptFailed.model_validate_json(row.payload)


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
