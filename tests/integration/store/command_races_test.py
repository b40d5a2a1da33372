"""A user's command and a worker's own report at the same moment, in every order, on a real Postgres.

Whoever commits second decides on what the first has written: nothing is lost, nothing happens twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from training_fsm.domain import events as e
from training_fsm.domain.commands import CancelRun, Command, ExtendRun, PauseRun, ResumeRun, RetryRun
from training_fsm.domain.decide import Refusal, decide
from training_fsm.domain.errors import TransitionRefused
from training_fsm.domain.facts import Failure
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.inbound import CommandReceived, NotificationReceived
from training_fsm.domain.notifications import PreprocessCompleted
from training_fsm.domain.policy import Policy
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import TimeRange
from training_fsm.ports import Cause, IngestAnswer
from training_fsm.service.audit_service import verify
from training_fsm.service.conflicts import on_conflict_again
from training_fsm.service.training_orchestration_service import TrainingOrchestrationService
from training_fsm.store.audit_reads import PostgresAuditLog
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import Lease, PostgresEventLog
from training_fsm.store.unit_of_work import PostgresUnitOfWork

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
Life = Callable[[str], tuple[e.Event, ...]]
CAUSE = Cause("worker-1", "work", "r")
WHO = {"actor": "a", "why": "w"}
CANCEL, PAUSE, RESUME = CancelRun(run_id="r", **WHO), PauseRun(run_id="r", **WHO), ResumeRun(run_id="r", **WHO)
EXTEND, RETRY = ExtendRun(run_id="r", additional_timesteps=1, **WHO), RetryRun(run_id="r", **WHO)


class Deaf:
    """Nobody asks ingest here."""

    def request_features(
        self,
        request_id: str,
        wanted: TimeRange,
        request: TrainingRequest,
        feature_config: FeatureConfigVersionInfo,
        context: str = "training",
    ) -> IngestAnswer:
        """Fails the test."""
        raise AssertionError("ingest is not asked")


class Interrupted(PostgresEventLog):
    """An event log whose first unit of work is overtaken between its decision and its commit."""

    def __init__(self, engine: sa.Engine, meanwhile: Callable[[], None]) -> None:
        super().__init__(engine)
        self._meanwhile: Callable[[], None] | None = meanwhile

    @contextmanager
    def begin(self) -> Iterator[PostgresUnitOfWork]:
        """As ever, but somebody else is quicker."""
        with super().begin() as unit:
            yield unit
            meanwhile, self._meanwhile = self._meanwhile, None
            if meanwhile is not None:
                meanwhile()


@dataclass
class Race:
    """A run that a worker holds, and both parties."""

    engine: sa.Engine
    history: tuple[e.Event, ...]

    def begin(self) -> None:
        """Write the history; the worker holds the run from its RunClaimed on."""
        log = PostgresEventLog(self.engine)
        for event in self.history:
            with log.begin() as unit:
                unit.append("r", [event], CAUSE)

    def order(self, command: Command, log: PostgresEventLog | None = None) -> None:
        """The orchestrator reads a command."""
        received = CommandReceived("test", "c1", command)
        self._service(log).handle([received])

    def hear(self, completion: PreprocessCompleted, log: PostgresEventLog | None = None) -> None:
        """The orchestrator reads preprocess's message."""
        self._service(log).handle([NotificationReceived("m1", completion)])

    def report(self, event: e.Event, log: PostgresEventLog | None = None) -> bool:
        """The worker appends under its lease; whether that fitted."""
        known, log = len(self.history), log or PostgresEventLog(self.engine)
        try:
            on_conflict_again(log.append_fenced)(Lease("r", 1, "worker-1"), [event], CAUSE, known)
        except TransitionRefused:
            return False
        return True

    def _service(self, log: PostgresEventLog | None) -> TrainingOrchestrationService:
        return TrainingOrchestrationService(log or PostgresEventLog(self.engine), Policy(), Deaf(), lambda: 0.0)

    @property
    def run(self) -> Run:
        """As it stands; the log verifies."""
        run = PostgresEventLog(self.engine).load("r")
        assert run is not None
        report = verify(PostgresAuditLog(self.engine), None, None)
        assert report.ok, report
        return run

    def types(self) -> list[str]:
        """What was added to the history."""
        added = list(PostgresAuditLog(self.engine).history("r"))[len(self.history) :]
        return [logged.type for logged in added]

    def refused(self) -> str | None:
        """Why the command was refused, if it was."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT outcome, reason FROM commands")).all()
        assert len(rows) == 1, "one command, one outcome"
        return rows[0].reason if rows[0].outcome == "refused" else None


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    engine = make_engine(migrated_database_url, application_name="test")
    yield engine
    engine.dispose()


@dataclass(frozen=True)
class Case:
    """What both parties do, after how much of a run's life, and how each order ends."""

    until: int
    before: tuple[e.Event, ...]
    command: Command
    report: e.Event | int
    """An event, or the index of one in the run's life."""
    command_first: tuple[list[str], State]
    report_first: tuple[list[str], State]


FAULT = Failure(kind="worker_crashed", words="killed")
CASES = {
    "cancel and a checkpoint": Case(
        7, (), CANCEL, 7, (["run_cancelled"], State.CANCELLED), (["checkpoint_saved", "run_cancelled"], State.CANCELLED)
    ),
    "cancel and the end of training": Case(
        9,
        (),
        CANCEL,
        9,
        (["run_cancelled"], State.CANCELLED),
        (["training_finished", "run_cancelled"], State.CANCELLED),
    ),
    "cancel and a registration": Case(
        12, (), CANCEL, 12, (["run_cancelled"], State.CANCELLED), (["model_registered"], State.REGISTERED)
    ),
    "cancel and a failed attempt": Case(
        7,
        (),
        CANCEL,
        e.AttemptFailed(reason=FAULT, attempt=1, retry_at=NOON),
        (["run_cancelled"], State.CANCELLED),
        (["attempt_failed", "run_cancelled"], State.CANCELLED),
    ),
    "pause and the end of training": Case(
        9,
        (),
        PAUSE,
        9,
        (["pause_requested", "training_finished"], State.EVALUATING),
        (["training_finished"], State.EVALUATING),
    ),
    "pause and a checkpoint": Case(
        7,
        (),
        PAUSE,
        7,
        (["pause_requested", "checkpoint_saved"], State.TRAINING),
        (["checkpoint_saved", "pause_requested"], State.TRAINING),
    ),
    "a pause taken back and the pause": Case(
        8,
        (e.PauseRequested(**WHO),),
        RESUME,
        e.RunPaused(**WHO, step=2048),
        (["run_resumed"], State.TRAINING),
        (["run_paused", "run_resumed"], State.TRAINING),
    ),
    "extend and the end of training": Case(
        9, (), EXTEND, 9, (["run_extended"], State.TRAINING), (["training_finished"], State.EVALUATING)
    ),
    "extend and a rejection": Case(
        11,
        (),
        EXTEND,
        e.ModelRejected(failed=("sharpe",)),
        (["model_rejected"], State.REJECTED),
        (["model_rejected", "run_extended"], State.TRAINING),
    ),
    "retry and the failure": Case(
        9,
        (),
        RETRY,
        e.RunFailed(reason=FAULT, failed_from=State.TRAINING),
        (["run_failed"], State.FAILED),
        (["run_failed", "run_retried"], State.TRAINING),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the races."""
    return CASES[request.param]


@pytest.fixture
def race(engine: sa.Engine, life: Life, case: Case) -> Race:
    """The run as the race begins."""
    race = Race(engine, (*life("r")[: case.until], *case.before))
    race.begin()
    return race


def _report(case: Case, life: Life) -> e.Event:
    return life("r")[case.report] if isinstance(case.report, int) else case.report


@pytest.mark.parametrize("interleaved", [False, True], ids=["one after the other", "in between"])
def test_the_command_first(case: Case, race: Race, life: Life, interleaved: bool) -> None:
    """The worker's report fits what the command made of the run, or is refused; also if it was under way already."""
    report = _report(case, life)
    if interleaved:
        fitted = race.report(report, Interrupted(race.engine, lambda: race.order(case.command)))
    else:
        race.order(case.command)
        fitted = race.report(report)
    kinds, state = case.command_first
    assert (race.types(), race.run.state) == (kinds, state)
    assert fitted is (report.type() in kinds)


@pytest.mark.parametrize("interleaved", [False, True], ids=["one after the other", "in between"])
def test_the_report_first(case: Case, race: Race, life: Life, interleaved: bool) -> None:
    """The command is obeyed as it fits what the worker reported, or refused with a reason; also if it was under way."""
    report, before = _report(case, life), race.run
    kinds, state = case.report_first
    if interleaved:
        race.order(case.command, Interrupted(race.engine, lambda: _must(race.report(report))))
        if isinstance(decide(before, case.command, NOON, Policy()), Refusal):
            kinds, state = case.command_first  # a refusal reads the run and writes nothing to it: it came first
    else:
        _must(race.report(report))
        race.order(case.command)
    assert (race.types(), race.run.state) == (kinds, state)
    assert (race.refused() is None) is (len(kinds) > 1)


def _must(fitted: bool) -> None:
    assert fitted


@pytest.mark.parametrize("first", ["cancel", "completion"])
def test_a_cancel_and_preprocess_s_message(engine: sa.Engine, life: Life, first: str) -> None:
    """Both come through the orchestrators; the second one decides again."""
    race = Race(engine, life("r")[:2])
    race.begin()
    asked = race.run.features
    assert asked is not None
    completed = PreprocessCompleted(request_id=asked.request_id, total_features_computed=1, success_details={})
    if first == "cancel":
        race.hear(completed, Interrupted(engine, lambda: race.order(CANCEL)))
        assert race.types() == ["run_cancelled"]
    else:
        race.order(CANCEL, Interrupted(engine, lambda: race.hear(completed)))
        assert race.types() == ["features_ready", "run_cancelled"]
    assert race.run.state is State.CANCELLED
