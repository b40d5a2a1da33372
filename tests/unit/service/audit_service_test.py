from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from training_fsm.domain.errors import ArtifactDamaged, OutsideUnavailable
from training_fsm.domain.events import ArtifactsReleased, Event, RunCancelled
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import Artifact, Failure
from training_fsm.domain.machine import destination
from training_fsm.domain.run import Run
from training_fsm.service.audit_log import ARTIFACT_EVENTS, LoggedEvent, RecordedHead
from training_fsm.service.audit_service import Report, replay, verify

Life = Callable[[str], tuple[Event, ...]]

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@dataclass
class MemoryLog:
    """An AuditLog in memory, in the order of its rows."""

    rows: list[LoggedEvent] = field(default_factory=list)
    recorded: dict[str, RecordedHead] = field(default_factory=dict)

    def write(self, run_id: str, events: Sequence[Event]) -> None:
        """Append as the store does; a hash is a number that names the row and the one before it."""
        run: Run | None = None
        for version, event in enumerate(events, start=1):
            to_state = destination(run, event)
            row = LoggedEvent(
                position=len(self.rows) + 1,
                stream=f"run-{run_id}",
                version=version,
                type=event.type(),
                schema_version=1,
                occurred_at=NOON + timedelta(minutes=version),
                from_state=run.state.value if run else None,
                to_state=to_state.value,
                actor="worker-1",
                causation_id="1",
                correlation_id=run_id,
                payload=event.model_dump_json(),
                previous_hash=version.to_bytes(32) if version > 1 else bytes(32),
                hash=(version + 1).to_bytes(32),
                computed_hash=(version + 1).to_bytes(32),
            )
            self.rows.append(row)
            run = evolve(run, run_id, event, to_state)
        assert run is not None
        columns: dict[str, object] = {
            "state": run.state.value,
            "version": run.version,
            "token": run.token,
            "worker": run.worker,
            "request_id": run.features.request_id if run.features else None,
            "model": run.request.model,
            "symbol": run.request.symbol,
            "timeframe": run.request.timeframe.value,
            "requested_at": NOON + timedelta(minutes=1),
            "changed_at": NOON + timedelta(minutes=len(events)),
        }
        self.recorded[run_id] = RecordedHead(columns, self.rows[-1].hash, run.model_dump_json())

    @contextmanager
    def snapshot(self) -> Iterator["MemoryLog"]:
        yield self

    def logged(self, stream: str | None) -> Iterator[LoggedEvent]:
        return iter(sorted((row for row in self.rows if stream in (None, row.stream)), key=lambda row: row.stream))

    def heads(self, run_ids: Sequence[str]) -> Mapping[str, RecordedHead]:
        return {run_id: self.recorded[run_id] for run_id in run_ids if run_id in self.recorded}

    def letter_digests(self, letter_ids: Sequence[str]) -> Mapping[str, str]:
        return {}

    def streams_gone(self) -> Sequence[tuple[str, str]]:
        there = {row.stream for row in self.rows}
        return [(f"run-{run_id}", "a run") for run_id in self.recorded if f"run-{run_id}" not in there]

    def history(self, run_id: str, after_version: int = 0) -> Iterator[LoggedEvent]:
        return (row for row in self.rows if row.stream == f"run-{run_id}" and row.version > after_version)

    def with_artifacts(self, stream: str | None, after_position: int, limit: int) -> Sequence[LoggedEvent]:
        found = (row for row in self.rows if row.position > after_position and row.type in ARTIFACT_EVENTS)
        return [row for row in found if stream in (None, row.stream)][:limit]


@dataclass
class FolderOfFiles:
    """Artifacts of which some are damaged, and a store that can be away."""

    damaged: frozenset[str] = frozenset()
    away: frozenset[str] = frozenset()
    fetched: list[str] = field(default_factory=list)

    def put(self, tracking_run_id: str, folder: str, path: Path) -> Artifact:
        raise NotImplementedError

    def get(self, artifact: Artifact, into: Path) -> Path:
        assert into.is_dir()
        if artifact.uri in self.away:
            raise OutsideUnavailable("mlflow", "timed out")
        self.fetched.append(artifact.uri)
        if artifact.uri in self.damaged:
            raise ArtifactDamaged(Failure(kind="artifact_damaged", words="other bytes", service="mlflow"))
        return into


@pytest.fixture
def log(life: Life) -> MemoryLog:
    """Two runs that have ended well."""
    log = MemoryLog()
    log.write("a", life("a"))
    log.write("b", life("b"))
    return log


def _places(report: Report) -> list[tuple[str, int | None, str]]:
    return [(fault.stream, fault.version, fault.what) for fault in report.faults]


def test_a_good_log_is_good(log: MemoryLog) -> None:
    """Two runs of thirteen events with five files each, and nothing off."""
    report = verify(log, None, FolderOfFiles)
    assert (report.ok, report.streams, report.events, report.artifacts) == (True, 2, 26, 10)


def test_no_store_is_built_for_a_log_without_files(life: Life) -> None:
    """Nobody waits for MLflow where there is nothing to fetch."""
    log = MemoryLog()
    log.write("a", life("a")[:4])

    def build() -> FolderOfFiles:
        raise AssertionError("not wanted")

    assert verify(log, None, build).ok


def test_a_damaged_file_is_named_with_its_event(log: MemoryLog) -> None:
    """The first damaged file of a run is its fault; other runs are still looked at."""
    files = FolderOfFiles(damaged=frozenset({"runs:/tracking-1/checkpoints/first"}))
    report = verify(log, None, lambda: files)
    assert _places(report) == [("run-a", 8, "artifact"), ("run-b", 8, "artifact")]
    assert report.faults[0].found == "other bytes"


def test_every_file_of_an_event_is_fetched(log: MemoryLog) -> None:
    """A checkpoint's curves count like the checkpoint."""
    files = FolderOfFiles(damaged=frozenset({"runs:/tracking-1/curves/last"}))
    assert _places(verify(log, "a", lambda: files)) == [("run-a", 9, "artifact")]


def _release(log: MemoryLog, run_id: str, *uris: str) -> None:
    """Let a run of the log release files, as its last event."""
    events = [row.event for row in log.rows if row.stream == f"run-{run_id}"]
    log.rows = [row for row in log.rows if row.stream != f"run-{run_id}"]
    artifacts = tuple(Artifact(uri=uri, sha256="a" * 64, size_bytes=1) for uri in uris)
    log.write(run_id, [*events, ArtifactsReleased(artifacts=artifacts, why="old")])


def test_a_released_file_may_be_gone(log: MemoryLog) -> None:
    """It is not even looked for; what the run has not released is damaged as ever, and so is another run's."""
    gone, kept = "runs:/tracking-1/checkpoints/first", "runs:/tracking-1/curves/last"
    _release(log, "b", gone)
    files = FolderOfFiles(damaged=frozenset({gone}))
    assert _places(verify(log, "b", lambda: files)) == []
    assert gone not in files.fetched
    assert _places(verify(log, None, lambda: files)) == [("run-a", 8, "artifact")]
    assert _places(verify(log, "b", lambda: FolderOfFiles(damaged=frozenset({gone, kept})))) == [
        ("run-b", 9, "artifact")
    ]


def test_a_file_that_is_released_while_the_audit_runs_may_be_gone(log: MemoryLog) -> None:
    """The log was read before the release, the store after it."""
    gone = "runs:/tracking-1/checkpoints/first"

    def build() -> FolderOfFiles:
        _release(log, "b", gone)
        return FolderOfFiles(damaged=frozenset({gone}))

    report = verify(log, "b", build)
    assert (_places(report), report.artifacts) == ([], 4)


def test_files_of_a_run_that_is_off_already_are_left(log: MemoryLog) -> None:
    """What a changed event names may be anything."""
    log.rows[2] = replace(log.rows[2], hash=bytes(32))
    files = FolderOfFiles()
    report = verify(log, None, lambda: files)
    assert _places(report) == [("run-a", 3, "hash")]
    assert len(files.fetched) == 5


def test_a_store_that_is_away_keeps_the_faults_found(log: MemoryLog) -> None:
    """The report is not ok, says where it stopped, and still names what is off."""
    log.rows[2] = replace(log.rows[2], hash=bytes(32))
    report = verify(log, None, lambda: FolderOfFiles(away=frozenset({"runs:/tracking-1/data/frozen"})))
    assert _places(report) == [("run-a", 3, "hash")]
    assert report.unchecked == "run-b version 6: mlflow: timed out"
    assert not report.ok


def test_only_the_first_fault_of_a_stream_counts(log: MemoryLog) -> None:
    """A missing event breaks everything behind it; the place where it broke is what matters."""
    del log.rows[5]
    report = verify(log, "a", None)
    assert _places(report) == [("run-a", 7, "version")]
    assert (report.faults[0].expected, report.faults[0].found) == ("6", "7")


def test_an_event_after_the_end_does_not_fit(log: MemoryLog) -> None:
    """The machine is asked again for every recorded step."""
    last = next(row for row in reversed(log.rows) if row.stream == "run-a")
    cancelled = RunCancelled(actor="me", why="late")
    log.rows.append(
        replace(
            last,
            position=99,
            version=last.version + 1,
            type=cancelled.type(),
            payload=cancelled.model_dump_json(),
            from_state="REGISTERED",
            to_state="CANCELLED",
            previous_hash=last.hash,
        )
    )
    (fault,) = verify(log, "a", None).faults
    assert (fault.version, fault.what, fault.found) == (14, "event", "run_cancelled does not fit a run in REGISTERED")


def test_more_streams_than_one_batch(life: Life) -> None:
    """The first and the last of many streams are looked at alike."""
    log = MemoryLog()
    for number in range(401):
        log.write(f"{number:03}", life(f"{number:03}")[:2])
    for run_id in ("000", "199", "200", "400"):
        del log.recorded[run_id]
    report = verify(log, None, None)
    assert report.streams == 401
    assert _places(report) == [(f"run-{run_id}", 2, "head") for run_id in ("000", "199", "200", "400")]


def test_replay_takes_the_state_from_the_record(log: MemoryLog) -> None:
    """History that the machine would not allow today still folds."""
    log.rows[3] = replace(log.rows[3], to_state="EVALUATING")
    replayed = replay(log, "a", version=4)
    assert replayed is not None
    assert replayed.run.state.value == "EVALUATING"
    assert replayed.since == log.rows[3].occurred_at


def test_replay_by_time_includes_that_moment(log: MemoryLog) -> None:
    """An event at exactly the time asked for has happened."""
    at = NOON + timedelta(minutes=4)
    before, then = replay(log, "a", at=at - timedelta(microseconds=1)), replay(log, "a", at=at)
    assert before is not None
    assert then is not None
    assert (before.run.version, then.run.version) == (3, 4)
    assert replay(log, "a", at=NOON) is None
