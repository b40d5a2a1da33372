import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import Result

from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_tracking import MlflowTracking
from training_fsm.domain.events import ArtifactsReleased, CheckpointSaved, MessageDeadLettered
from training_fsm.domain.inbound import LetterReceived
from training_fsm.domain.run import Run
from training_fsm.local.mlflow_server import MlflowServer
from training_fsm.ports import Cause, InboxEntry
from training_fsm.store.audit_reads import PostgresAuditLog
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.store.hash_chain import Envelope

Cli = Callable[..., Result]
Live = Callable[..., Run]

LETTER = "letter-1"
MESSAGE = b"not json"


@pytest.fixture
def full_log(engine: sa.Engine, live: Live) -> sa.Engine:
    """Two runs, a refused command and a dead letter."""
    live(engine, "r")
    live(engine, "other", 9)
    with PostgresEventLog(engine).begin() as unit:
        cause = Cause("orchestrator", "1", "1")
        unit.refuse(InboxEntry("cli", "1", "cancel_run", "x", "refused", "run_id: there is no run x"), cause)
        unit.dead_letter(LetterReceived(LETTER, _letter(), MESSAGE, None, ()), cause)
    return engine


def _letter() -> MessageDeadLettered:
    fields: dict[str, object] = dict.fromkeys(MessageDeadLettered.model_fields) | {"headers": ()}
    fields |= {"topic": "requested.train-model", "partition": 0, "offset": 0, "reason": "value: expected JSON"}
    fields |= {"sha256": hashlib.sha256(MESSAGE).hexdigest(), "size_bytes": len(MESSAGE), "bytes": ""}
    return MessageDeadLettered.model_validate(fields)


def _tamper(engine: sa.Engine, *statements: str) -> None:
    """As the owner of the tables, who can switch off what stops everybody else."""
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE events DISABLE TRIGGER USER"))
        connection.execute(sa.text("ALTER TABLE events DROP CONSTRAINT IF EXISTS events_transition"))
        for statement in statements:
            assert connection.exec_driver_sql(statement).rowcount == 1
        connection.execute(sa.text("ALTER TABLE events ENABLE TRIGGER USER"))


def _rehash(engine: sa.Engine, run_id: str) -> None:
    """Make the chain of a run fit again, as somebody would who knows how."""
    _tamper(engine, *_mended(engine, run_id))


def _mended(engine: sa.Engine, run_id: str) -> Iterator[str]:
    previous = bytes(32)
    for logged in PostgresAuditLog(engine).history(run_id):
        hashed = Envelope(
            stream=logged.stream,
            version=logged.version,
            type=logged.type,
            schema_version=logged.schema_version,
            occurred_at=logged.occurred_at,
            from_state=logged.from_state,
            to_state=logged.to_state,
            actor=logged.actor,
            causation_id=logged.causation_id,
            correlation_id=logged.correlation_id,
            payload=logged.payload.encode(),
        ).hash(previous)
        yield (
            f"UPDATE events SET previous_hash = '\\x{previous.hex()}', hash = '\\x{hashed.hex()}'"
            f" WHERE position = {logged.position}"
        )
        previous = hashed
    yield f"UPDATE run_heads SET last_hash = '\\x{previous.hex()}' WHERE run_id = '{run_id}'"


def _faults(result: Result) -> list[tuple[str, int | None, str]]:
    report = json.loads(result.stdout)
    assert report["ok"] is (result.exit_code == 0)
    return [(fault["stream"], fault["version"], fault["what"]) for fault in report["faults"]]


def test_an_untouched_log_verifies(full_log: sa.Engine, cli: Cli) -> None:
    """Runs, refusals and letters as they were written: nothing is off, and the numbers say what was looked at."""
    result = cli("audit", "verify", "--no-artifacts", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "ok": True,
        "streams": 4,
        "events": 24,
        "artifacts": 0,
        "faults": [],
        "unchecked": None,
    }
    assert "24 events in 4 streams" in cli("audit", "verify", "--no-artifacts").stdout


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (
            "UPDATE events SET payload = replace(payload::text, '2048', '4096')::json"
            " WHERE stream = 'run-r' AND version = 8",
            ("run-r", 8, "hash"),
        ),
        (
            "UPDATE events SET payload = (payload::text || ' ')::json WHERE stream = 'run-r' AND version = 4",
            ("run-r", 4, "hash"),
        ),
        ("UPDATE events SET payload = '{}' WHERE stream = 'run-r' AND version = 8", ("run-r", 8, "payload")),
        (
            "UPDATE events SET to_state = 'EVALUATING' WHERE stream = 'run-r' AND version = 4",
            ("run-r", 4, "to state"),
        ),
        (
            "UPDATE events SET from_state = 'FAILED' WHERE stream = 'run-r' AND version = 4",
            ("run-r", 4, "from state"),
        ),
        ("UPDATE events SET version = 99 WHERE stream = 'run-r' AND version = 13", ("run-r", 99, "version")),
        ("UPDATE events SET hash = sha256('x') WHERE stream = 'run-r' AND version = 5", ("run-r", 5, "hash")),
        (
            "UPDATE events SET previous_hash = sha256('x') WHERE stream = 'run-r' AND version = 5",
            ("run-r", 5, "previous hash"),
        ),
        ("UPDATE events SET actor = 'nobody' WHERE stream = 'run-r' AND version = 5", ("run-r", 5, "hash")),
        (
            "UPDATE events SET occurred_at = occurred_at - interval '1 microsecond'"
            " WHERE stream = 'run-r' AND version = 7",
            ("run-r", 7, "hash"),
        ),
        ("UPDATE events SET schema_version = 9 WHERE stream = 'run-r' AND version = 7", ("run-r", 7, "payload")),
        ("DELETE FROM events WHERE stream = 'run-r' AND version = 6", ("run-r", 7, "version")),
        ("DELETE FROM events WHERE stream = 'run-r' AND version = 13", ("run-r", 12, "head.state")),
        ("DELETE FROM events WHERE stream = 'command-cli/1'", ("command-cli/1", None, "stream")),
        ("DELETE FROM events WHERE stream = 'letter-letter-1'", ("letter-letter-1", None, "stream")),
        ("DELETE FROM run_heads WHERE run_id = 'r'", ("run-r", 13, "head")),
        ("UPDATE run_heads SET state = 'REJECTED' WHERE run_id = 'r'", ("run-r", 13, "head.state")),
        ("UPDATE run_heads SET token = 7 WHERE run_id = 'r'", ("run-r", 13, "head.token")),
        ("UPDATE run_heads SET last_hash = sha256('x') WHERE run_id = 'r'", ("run-r", 13, "head.last_hash")),
        (
            "UPDATE run_heads SET run = replace(run::text, '0.61', '0.99')::json WHERE run_id = 'r'",
            ("run-r", 13, "head.run.evaluation"),
        ),
        ("UPDATE dead_letters SET message = 'something else'", ("letter-letter-1", 1, "message")),
        ("DELETE FROM dead_letters", ("letter-letter-1", 1, "message")),
    ],
)
def test_whatever_is_changed_is_named(
    full_log: sa.Engine, cli: Cli, statement: str, fault: tuple[str, int | None, str]
) -> None:
    """One change to the log, a head or a letter: exactly this one is off, and the exit code says so."""
    _tamper(full_log, statement)
    result = cli("audit", "verify", "--no-artifacts", "--json")
    assert result.exit_code == 1
    assert _faults(result) == [fault]


def test_a_forged_chain_does_not_hide_a_changed_result(full_log: sa.Engine, cli: Cli) -> None:
    """Whoever changes a metric and mends every hash after it is caught by the folded head."""
    _tamper(
        full_log,
        "UPDATE events SET payload = replace(payload::text, '\"sharpe\":0.61', '\"sharpe\":2.61')::json"
        " WHERE stream = 'run-r' AND version = 11",
    )
    _rehash(full_log, "r")
    assert _faults(cli("audit", "verify", "--no-artifacts", "--json")) == [("run-r", 13, "head.run.evaluation")]


def test_a_forged_chain_does_not_hide_an_impossible_step(full_log: sa.Engine, cli: Cli) -> None:
    """A state that the machine does not allow is off even where every hash fits."""
    _tamper(full_log, "UPDATE events SET to_state = 'REGISTERED' WHERE stream = 'run-r' AND version = 10")
    _rehash(full_log, "r")
    assert _faults(cli("audit", "verify", "--no-artifacts", "--json")) == [("run-r", 10, "to state")]


def test_a_run_whose_events_are_all_gone_is_missed(full_log: sa.Engine, cli: Cli) -> None:
    """A head without any event is named, also when only its run is asked for."""
    with full_log.begin() as connection:
        connection.execute(sa.text("ALTER TABLE events DISABLE TRIGGER USER"))
        connection.execute(sa.text("DELETE FROM events WHERE stream = 'run-r'"))
    for words in ((), ("r",)):
        result = cli("audit", "verify", *words, "--no-artifacts", "--json")
        assert _faults(result) == [("run-r", None, "stream")]


def test_the_earliest_fault_comes_first(full_log: sa.Engine, cli: Cli) -> None:
    """Faults of several streams are told in the order in which they were written."""
    _tamper(
        full_log,
        "UPDATE events SET actor = 'x' WHERE stream = 'run-other' AND version = 2",
        "UPDATE events SET actor = 'x' WHERE stream = 'run-r' AND version = 3",
    )
    result = cli("audit", "verify", "--no-artifacts", "--json")
    assert _faults(result) == [("run-r", 3, "hash"), ("run-other", 2, "hash")]
    assert "run-r version 3: hash: expected" in cli("audit", "verify", "--no-artifacts").stdout


def test_ids_with_separators_are_found_again(engine: sa.Engine, cli: Cli) -> None:
    """The stream of a refused command is looked for under the name it was written with."""
    with PostgresEventLog(engine).begin() as unit:
        for command_id in ("b/c", "50%", "%2F"):
            unit.refuse(InboxEntry("a/b", command_id, "x", None, "refused", "why"), Cause("orchestrator", "1", "1"))
    result = cli("audit", "verify", "--json")
    assert (_faults(result), json.loads(result.stdout)["streams"]) == ([], 3)


def test_one_run_is_verified_alone(full_log: sa.Engine, cli: Cli) -> None:
    """Another run's fault is not this run's."""
    _tamper(full_log, "UPDATE events SET actor = 'x' WHERE stream = 'run-other' AND version = 2")
    assert cli("audit", "verify", "r", "--no-artifacts").exit_code == 0
    assert cli("audit", "verify", "oth", "--no-artifacts").exit_code == 1
    unknown = cli("audit", "verify", "nobody", "--no-artifacts")
    assert (unknown.exit_code, unknown.stderr) == (1, "there is no run nobody\n")


def test_replay_prints_a_run_as_it_was(full_log: sa.Engine, cli: Cli) -> None:
    """By version and by time, as a card and as JSON; before its first event there is nothing to show."""
    first = json.loads(cli("audit", "replay", "r", "--version", "1", "--json").stdout)
    assert (first["run"]["state"], first["last_event"], first["version"]) == ("REQUESTED", "run_requested", 1)
    early = cli("audit", "replay", "r", "--at", first["at"])
    assert early.exit_code == 0, early.output
    assert "AWAITING_FEATURES" in early.stdout  # the first two events are of one transaction
    assert "REGISTERED" in cli("audit", "replay", "r").stdout
    nothing = cli("audit", "replay", "r", "--at", "2020-01-01T00:00:00Z")
    assert (nothing.exit_code, nothing.stderr) == (1, "run r had no event yet at 2020-01-01T00:00:00Z\n")


def test_replay_refuses_what_is_no_time(full_log: sa.Engine, cli: Cli) -> None:
    """A wrong time is bad input, and so are a time and a version together."""
    assert cli("audit", "replay", "r", "--at", "noon").exit_code == 2
    assert cli("audit", "replay", "r", "--at", "2026-01-01", "--version", "1").exit_code == 2


def test_replay_of_a_damaged_run_says_that_it_does_not_fold(full_log: sa.Engine, cli: Cli) -> None:
    """No traceback: the way to the exact place is named."""
    _tamper(full_log, "UPDATE events SET payload = '{}' WHERE stream = 'run-r' AND version = 8")
    result = cli("audit", "replay", "r")
    assert result.exit_code == 1
    assert "audit verify r" in result.stderr


def test_stored_files_are_verified(
    engine: sa.Engine,
    live: Live,
    cli: Cli,
    mlflow_server: MlflowServer,
    server_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that was changed or is gone is named with its event, unless the run has released it."""
    monkeypatch.setenv("TRAINING_FSM_MLFLOW_TRACKING_URI", mlflow_server.url)
    connection = MlflowConnection(mlflow_server.url)
    tracking_run = MlflowTracking(connection).open_run("r", {}, {})
    weights = tmp_path / "weights.npz"
    weights.write_bytes(b"weights")
    stored = MlflowArtifacts(connection).put(tracking_run, "checkpoints", weights)
    live(engine, "r", 5)
    saved = CheckpointSaved(step=2048, **stored.model_dump())
    PostgresEventLog(engine).append_fenced(Lease("r", 1, "worker-1"), [saved], Cause("worker-1", "work", "r"))

    report = json.loads(cli("audit", "verify", "--json").stdout)
    assert (report["ok"], report["artifacts"]) == (True, 1)

    (kept,) = (server_folder / "mlflow" / "artifacts").rglob(f"*{stored.sha256[:16]}-weights.npz")
    kept.write_bytes(b"other weights")
    assert _faults(cli("audit", "verify", "--json")) == [("run-r", 6, "artifact")]
    kept.unlink()
    assert _faults(cli("audit", "verify", "--json")) == [("run-r", 6, "artifact")]
    released = ArtifactsReleased(artifacts=(stored,), why="old")
    PostgresEventLog(engine).append_fenced(Lease("r", 1, "worker-1"), [released], Cause("housekeeping", "1", "r"))
    report = json.loads(cli("audit", "verify", "--json").stdout)
    assert (report["ok"], report["artifacts"]) == (True, 0)


def test_an_artifact_store_that_is_away_is_no_clean_bill(
    engine: sa.Engine, live: Live, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be looked at is said, beside what is known to be off."""
    monkeypatch.setenv("TRAINING_FSM_MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    live(engine, "r", 6)
    result = cli("audit", "verify")
    assert result.exit_code == 1
    assert "run-r version 6: mlflow: " in result.stdout
