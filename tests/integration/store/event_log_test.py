"""The event store: exact text, chained hashes, all or nothing, and one winner of each race."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
import structlog

from training_fsm.domain import events as e
from training_fsm.domain.decide import feature_request_id
from training_fsm.domain.errors import ChampionMoved, Conflict, OutsideUnavailable, TransitionRefused
from training_fsm.domain.facts import Failure
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.postgres import start_postgres
from training_fsm.messaging.message import Message, dead_letter
from training_fsm.ports import Cause, InboxEntry
from training_fsm.store.engine import ALIASES_LOCK, make_engine
from training_fsm.store.errors import domain_errors
from training_fsm.store.event_log import Champion, Lease, PostgresEventLog, Promotion
from training_fsm.store.hash_chain import GENESIS, Envelope
from training_fsm.store.migrate import migrate
from training_fsm.store.unit_of_work import WORK_CHANNEL

Life = Callable[[str], tuple[e.Event, ...]]
Live = Callable[..., Run]
CAUSE = Cause("test", "m", "c")


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


def _events(engine: sa.Engine, stream: str) -> list[sa.Row[tuple[object, ...]]]:
    with engine.connect() as connection:
        found = sa.text("SELECT *, payload::text AS text FROM events WHERE stream = :stream ORDER BY version")
        return list(connection.execute(found, {"stream": stream}))


def _count(engine: sa.Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_a_payload_is_stored_as_the_text_that_was_hashed(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """Key order, 1.0 beside 1, escapes and letters beyond ASCII come back byte by byte."""
    details = json.loads(
        '{"z": 1.0, "a": 1, "m": 1e300, "ü→\\u2028": "\\u0001\\ud83d\\ude00 ä", "n": null, "b": [1.5, -0.0]}'
    )
    ready = e.FeaturesReady(request_id=feature_request_id("r", 1), total_features_computed=6, success_details=details)
    with log.begin() as unit:
        unit.append("r", [*life("r")[:2], ready], CAUSE)
    stored = _events(engine, "run-r")[2].text
    assert stored == ready.model_dump_json()
    assert '"z":1.0,"a":1,' in stored
    run = log.load("r")
    assert run is not None
    assert run.features_ready == ready


def test_the_hash_chain_recomputes_from_what_is_stored(engine: sa.Engine, live: Live) -> None:
    """Each event carries the hash of the one before it; the head carries the last."""
    live(engine, "r")
    previous = GENESIS
    for row in _events(engine, "run-r"):
        names = ("stream", "version", "type", "schema_version", "occurred_at", "from_state", "to_state", "actor")
        fields = {name: getattr(row, name) for name in (*names, "causation_id", "correlation_id")}
        assert row.previous_hash == previous
        previous = Envelope(**fields, payload=row.text.encode()).hash(previous)
        assert row.hash == previous
    with engine.connect() as connection:
        head = connection.execute(sa.text("SELECT last_hash, version FROM run_heads")).one()
    assert (bytes(head.last_hash), head.version) == (previous, 13)


@pytest.mark.parametrize("name", Envelope.__dataclass_fields__)
def test_every_field_of_the_envelope_is_covered_by_the_hash(name: str) -> None:
    """Also against moving text from one field to the next."""
    fields: dict[str, object] = {
        "stream": "run-r",
        "version": 1,
        "type": "t",
        "schema_version": 1,
        "occurred_at": datetime(2026, 11, 24, tzinfo=UTC),
        "from_state": "A",
        "to_state": "B",
        "actor": "a",
        "causation_id": "c",
        "correlation_id": "d",
        "payload": b"{}",
    }
    others = {
        "version": 2,
        "schema_version": 2,
        "occurred_at": datetime(2026, 11, 24, 0, 0, 0, 1, tzinfo=UTC),
        "payload": b"[]",
    }
    before = Envelope(**fields).hash(GENESIS)  # type: ignore[arg-type]
    assert Envelope(**fields | {name: others.get(name, "x")}).hash(GENESIS) != before  # type: ignore[arg-type]
    assert Envelope(**fields | {"actor": "ac", "causation_id": ""}).hash(GENESIS) != before  # type: ignore[arg-type]
    assert Envelope(**fields).hash(bytes(31) + b"\x01") != before  # type: ignore[arg-type]


def test_a_head_is_what_its_events_fold_to(engine: sa.Engine, log: PostgresEventLog, live: Live) -> None:
    """The columns that lists and timers use are the run's."""
    run = live(engine, "r", 9)
    assert _version(log) == run.version
    with engine.connect() as connection:
        head = connection.execute(sa.text("SELECT * FROM run_heads")).one()
    assert (head.state, head.version, head.token, head.worker) == ("TRAINING", 9, 1, "worker-1")
    assert (head.model, head.symbol, head.timeframe) == ("eurusd-ppo", "EURUSD", "4h")
    assert head.request_id == feature_request_id("r", 1)
    assert _count(engine, "checkpoints") == 1  # both have the same digest
    assert _count(engine, "feature_configs") == 1


def test_two_feature_configurations_under_one_version_are_kept_and_told(
    engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """Names carry version and hash, so nothing breaks; people should know all the same, once."""
    requested = life("r")[0]
    assert isinstance(requested, e.RunRequested)
    assert requested.feature_config is not None
    other = requested.feature_config.model_copy(update={"hash": "0123456789"})
    with structlog.testing.capture_logs() as lines:
        for run_id, config in (("a", requested.feature_config), ("b", other), ("c", other)):
            with log.begin() as unit:
                unit.append(run_id, [requested.model_copy(update={"feature_config": config})], CAUSE)
    assert [(line["hash"], line["others"]) for line in lines] == [(other.hash, [requested.feature_config.hash])]
    assert _count(engine, "feature_configs") == 2


def test_of_two_units_on_one_run_one_is_refused_whole(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """The loser's other runs, inbox rows and letters are not stored either."""
    with log.begin() as unit:
        unit.append("r", life("r")[:2], CAUSE)
    loser = log.begin()
    losing = loser.__enter__()
    losing.append("r", [e.RunCancelled(actor="slow", why="")], CAUSE)
    losing.append("other", life("other")[:2], CAUSE)
    losing.accept(InboxEntry("s", "1", "cancel_run", "r", "accepted", None))
    losing.refuse(InboxEntry("s", "2", "cancel_run", "x", "refused", "no"), CAUSE)
    letter = dead_letter(Message("t", 0, 0, 0, None, b"?"), "why")
    losing.dead_letter(letter, CAUSE)
    with log.begin() as unit:
        unit.append("r", [life("r")[3]], CAUSE)
    before = _count(engine, "events")
    with pytest.raises(Conflict):
        loser.__exit__(None, None, None)
    assert _count(engine, "events") == before
    assert (_count(engine, "run_heads"), _count(engine, "commands"), _count(engine, "dead_letters")) == (1, 0, 0)
    run = log.load("r")
    assert run is not None
    assert run.state is State.TRAINING


def test_of_two_units_that_begin_a_run_one_is_refused(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """Both saw no run; the constraint lets one in."""
    loser = log.begin()
    losing = loser.__enter__()
    assert losing.runs(["r"]) == {}
    losing.append("r", life("r")[:2], CAUSE)
    with log.begin() as unit:
        unit.append("r", life("r")[:2], CAUSE)
    with pytest.raises(Conflict):
        loser.__exit__(None, None, None)
    assert _count(engine, "events") == 2


def test_the_same_command_in_two_units_is_stored_once(engine: sa.Engine, log: PostgresEventLog) -> None:
    """The inbox's key decides, also where neither saw the other."""
    entry = InboxEntry("s", "1", "cancel_run", "r", "refused", "no")
    loser = log.begin()
    losing = loser.__enter__()
    losing.refuse(entry, CAUSE)
    with log.begin() as unit:
        unit.refuse(entry, CAUSE)
    with pytest.raises(Conflict):
        loser.__exit__(None, None, None)
    with log.begin() as unit:
        assert unit.seen_commands([("s", "1"), ("s", "2"), ("t", "1")]) == {("s", "1")}
        assert unit.seen_commands([]) == frozenset()


def test_refusals_of_sources_and_ids_with_slashes_have_streams_of_their_own(
    engine: sa.Engine, log: PostgresEventLog
) -> None:
    """`/a` with id `b/c` is not `/a/b` with id `c`."""
    for source, command_id in (("/a", "b/c"), ("/a/b", "c"), ("/a", "b%2Fc")):
        with log.begin() as unit:
            unit.refuse(InboxEntry(source, command_id, "cancel_run", None, "refused", "no"), CAUSE)
    assert (_count(engine, "commands"), _count(engine, "events")) == (3, 3)


def test_what_the_machine_refuses_is_not_written(engine: sa.Engine, log: PostgresEventLog, life: Life) -> None:
    """A unit that raises leaves nothing behind."""
    with pytest.raises(TransitionRefused), log.begin() as unit:
        unit.append("r", [*life("r")[:2], life("r")[9]], CAUSE)
    assert _count(engine, "events") == 0
    assert log.load("r") is None


def test_a_letter_is_kept_once(engine: sa.Engine, log: PostgresEventLog) -> None:
    """The same message again, in the same unit or a later one, adds nothing."""
    headers = (("ce_id", b"7"), ("ce_id", b"\xff\x00"))
    letter = dead_letter(Message("t", 1, 2, 3, b"\x00", bytes(range(256)), headers), "why")
    for _ in range(2):
        with log.begin() as unit:
            for _ in range(2):
                unit.dead_letter(letter, CAUSE)
    assert _count(engine, "events") == 1
    with engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT * FROM dead_letters")).one()
    assert (bytes(kept.message), kept.topic, kept.partition, kept.offset) == (bytes(range(256)), "t", 1, 2)
    assert (bytes(kept.key), kept.headers) == (b"\x00", [["ce_id", "Nw=="], ["ce_id", "/wA="]])


def test_runs_are_found_by_the_request_that_they_wait_for(log: PostgresEventLog, life: Life) -> None:
    """A completion moves every run that waits for its id."""
    with log.begin() as unit:
        unit.append("a", life("a")[:2], CAUSE)
        unit.append("b", [life("b")[0], life("a")[1]], CAUSE)
    asked = feature_request_id("a", 1)
    with log.begin() as unit:
        found = unit.runs_awaiting([asked, "unknown"])
    assert {request_id: set(run_ids) for request_id, run_ids in found.items()} == {asked: {"a", "b"}}


def test_due_questions_are_taken_once_and_come_back(log: PostgresEventLog, life: Life, engine: sa.Engine) -> None:
    """Whoever takes a question hides it; a hold that ended shows it again; a deadline far away is not due."""
    with log.begin() as unit:
        for run_id in ("a", "b"):
            unit.append(run_id, life(run_id)[:2], CAUSE)
    assert log.next_due_s() == 0
    assert {run.run_id for run in log.take_due_feature_requests(10, hold_s=60)} == {"a", "b"}
    assert log.take_due_feature_requests(10, hold_s=60) == []
    due_s = log.next_due_s()
    assert due_s is not None
    assert 0 < due_s <= 60
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE run_heads SET due_at = clock_timestamp() WHERE run_id = 'a'"))
    assert [run.run_id for run in log.take_due_feature_requests(10, hold_s=60)] == ["a"]
    failure = e.RunFailed(reason=Failure(kind="deadline", words="w"), failed_from=State.AWAITING_FEATURES)
    with log.begin() as unit:
        for run_id in ("a", "b"):
            unit.append(run_id, [failure], CAUSE)
    assert log.next_due_s() is None


def test_workers_are_notified_when_a_run_becomes_claimable_and_only_then(
    log: PostgresEventLog, life: Life, migrated_database_url: str
) -> None:
    """Not by what happens inside TRAINING, nor by a run that came into it and out again in one unit."""
    url = sa.make_url(migrated_database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f"LISTEN {WORK_CHANNEL}")

        def heard() -> list[str]:
            return [notify.payload for notify in listener.notifies(timeout=0.3)]

        with log.begin() as unit:
            for run_id in ("a", "b"):
                unit.append(run_id, life(run_id)[:3], CAUSE)
        assert heard() == []
        with log.begin() as unit:
            unit.append("a", [life("a")[3]], CAUSE)
            unit.append("b", [life("b")[3], e.RunCancelled(actor="", why="")], CAUSE)
        assert heard() == ["a"]
        claimed = log.claim("w", 60)
        assert claimed is not None
        lease = claimed[1]
        for event in life("a")[5:10]:
            log.append_fenced(lease, [event], CAUSE)
        assert heard() == []
        failure = e.RunFailed(reason=Failure(kind="evaluation_error", words="w"), failed_from=State.EVALUATING)
        log.append_fenced(lease, [failure], CAUSE)
        assert heard() == []
        with log.begin() as unit:
            unit.append("a", [e.RunRetried(actor="", why="")], CAUSE)
        assert heard() == ["a"]


def test_many_threads_append_to_many_runs_without_a_hole_in_any(
    engine: sa.Engine, log: PostgresEventLog, life: Life
) -> None:
    """Conflicts lose nothing and double nothing."""
    runs = [f"r{number}" for number in range(4)]
    with log.begin() as unit:
        for run_id in runs:
            unit.append(run_id, life(run_id)[:7], CAUSE)
    checkpoint = life("r")[7]

    def work() -> None:
        for run_id in runs * 5:
            while True:
                try:
                    with log.begin() as unit:
                        unit.append(run_id, [checkpoint], CAUSE)
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run_id in runs:
        assert [row.version for row in _events(engine, f"run-{run_id}")] == list(range(1, 7 + 30 + 1))


def test_the_registered_models_are_one_caller_s_at_a_time_and_hold_no_transaction(
    engine: sa.Engine, log: PostgresEventLog, live: Live
) -> None:
    """The highest version of each name and its champion; a second caller gets none, and the lock is free afterwards."""
    live(engine, "r")
    live(engine, "unfinished", 9)
    for version in (1, 2):
        with log.begin() as unit:
            unit.promote(promotion(version), version - 1, CAUSE)
    idle = "FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in %'"
    locks = (
        "FROM pg_locks JOIN pg_database ON pg_database.oid = database AND datname = current_database() "
        f"WHERE locktype = 'advisory' AND objid = {ALIASES_LOCK}"
    )

    def count(what: str) -> int:
        with engine.connect() as connection:
            return int(connection.execute(sa.text(f"SELECT count(*) {what}")).scalar_one())

    with log.aliases() as versions, log.aliases() as others:
        assert (versions, others) == ({"candidate": {"eurusd-ppo": 3}, "champion": {"eurusd-ppo": 2}}, {})
        assert (count(idle), count(locks)) == (0, 1)
    assert count(locks) == 0


def promotion(version: int) -> e.ChampionPromoted:
    """Version n of eurusd-ppo becomes champion after version n - 1."""
    return e.ChampionPromoted(
        name="eurusd-ppo", version=version, digest="d" * 64, run_id="r", supersedes=version - 1 or None
    )


def _version(log: PostgresEventLog) -> int:
    run = log.load("r")
    assert run is not None
    return run.version


def test_who_is_champion_is_compared_and_set(engine: sa.Engine, log: PostgresEventLog) -> None:
    """A promotion that was decided against an earlier champion changes nothing and says so."""
    assert log.champion("eurusd-ppo") == Champion(None, 0)
    with log.begin() as unit:
        unit.promote(promotion(1), 0, CAUSE)
    assert log.champion("eurusd-ppo") == Champion(promotion(1), 1)
    with pytest.raises(ChampionMoved, match="at version 1, not 0"), log.begin() as unit:
        unit.promote(promotion(2), 0, CAUSE)
    assert log.champion("eurusd-ppo") == Champion(promotion(1), 1)
    assert [row.version for row in _events(engine, "model-eurusd-ppo")] == [1]


def test_of_two_promotions_at_once_one_comes_too_late(engine: sa.Engine, log: PostgresEventLog) -> None:
    """Whoever commits second has judged against a champion who is champion no more."""
    first = log.begin()
    first.__enter__().promote(promotion(1), 0, CAUSE)
    with log.begin() as unit:
        unit.promote(promotion(2), 0, CAUSE)
    with pytest.raises(Conflict):
        first.__exit__(None, None, None)
    assert log.champion("eurusd-ppo") == Champion(promotion(2), 1)
    assert [row.version for row in _events(engine, "model-eurusd-ppo")] == [1]


def test_a_registration_whose_promotion_comes_too_late_is_not_stored(
    engine: sa.Engine, log: PostgresEventLog, life: Life, live: Live
) -> None:
    """Both in one transaction: no model is registered as a challenger that did not meet the champion."""
    live(engine, "r", 12)
    claimed = log.claim("second", 60, "r")
    assert claimed is None, "its lease is alive"
    run = log.load("r")
    assert run is not None
    lease = Lease("r", run.token, "worker-1")
    with log.begin() as unit:
        unit.promote(promotion(1), 0, CAUSE)
    registered = life("r")[-1]
    with pytest.raises(ChampionMoved):
        log.append_fenced(lease, [registered], CAUSE, run.version, Promotion(promotion(3), 0))
    assert _version(log) == run.version
    after = log.append_fenced(lease, [registered], CAUSE, run.version, Promotion(promotion(3), 1))
    assert after.state is State.REGISTERED
    # The answer was lost and the worker asks again: neither is stored twice.
    again = log.append_fenced(lease, [registered], CAUSE, run.version, Promotion(promotion(3), 1))
    assert again.version == after.version == _version(log)
    assert [row.version for row in _events(engine, "model-eurusd-ppo")] == [1, 2]
    assert log.registered("eurusd-ppo", 3) == registered
    assert log.registered("eurusd-ppo", 4) is None


@pytest.mark.parametrize("state", ["25P03", "25006", "53100", "53300", "57P01", "58030", "08006"])
def test_a_postgres_that_cannot_serve_now_is_unavailable(engine: sa.Engine, state: str) -> None:
    """Idle for too long, read-only, out of disk, connections or luck: all of them pass."""
    with pytest.raises(OutsideUnavailable, match="postgres: no luck"), domain_errors(), engine.begin() as connection:
        connection.execute(sa.text(f"DO $$ BEGIN RAISE 'no luck' USING ERRCODE = '{state}'; END $$"))


@pytest.mark.parametrize("state", ["XX000", "22003", "42501", "55P03"])
def test_other_faults_of_postgres_stay_what_they_are(engine: sa.Engine, state: str) -> None:
    """Waiting would hide a fault of ours."""
    with pytest.raises(sa.exc.DBAPIError, match="our fault"), domain_errors(), engine.begin() as connection:
        connection.execute(sa.text(f"DO $$ BEGIN RAISE 'our fault' USING ERRCODE = '{state}'; END $$"))


def test_a_postgres_that_dies_in_the_middle_is_unavailable_and_keeps_what_was_committed(
    tmp_path: Path, life: Life
) -> None:
    """A unit that was open is gone whole; after the restart the log goes on where it was."""
    data_dir = tmp_path / "postgres"
    with start_postgres(data_dir, log=tmp_path / "log") as server:
        engine = make_engine(server.url, application_name="test")
        migrate(engine)
        log = PostgresEventLog(engine)
        with log.begin() as unit:
            unit.append("kept", life("kept")[:2], CAUSE)
        open_unit = log.begin()
        open_unit.__enter__().append("lost", life("lost")[:2], CAUSE)
        server.stop()
        with pytest.raises(OutsideUnavailable, match="postgres"):
            open_unit.__exit__(None, None, None)
        with pytest.raises(OutsideUnavailable, match="postgres"):
            log.load("kept")
        port = server.port
    with start_postgres(data_dir, log=tmp_path / "log", port=port):
        run = log.load("kept")
        assert run is not None
        assert run.version == 2
        assert log.load("lost") is None
        engine.dispose()
