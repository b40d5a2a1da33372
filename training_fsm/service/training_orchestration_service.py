"""Commands, preprocess's answers, asking ingest, deadlines: what moves a run up to TRAINING."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import assert_never

from training_fsm.domain.decide import Events, Refusal, answered, deadline_passed, decide, failed, hear, overdue
from training_fsm.domain.errors import IngestRefused, OutsideUnavailable
from training_fsm.domain.facts import Failure
from training_fsm.domain.inbound import (
    CommandMalformed,
    CommandReceived,
    Inbound,
    LetterReceived,
    NotificationReceived,
)
from training_fsm.domain.policy import Policy
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.ports import Cause, EventLog, InboxEntry, Ingest, UnitOfWork
from training_fsm.service.conflicts import on_conflict_again

ACTOR = "orchestrator"

Decision = Callable[[Run, datetime], Events]


class TrainingOrchestrationService:
    """Decides what comes in, one batch one transaction, and asks ingest for features, outside of any."""

    def __init__(self, log: EventLog, policy: Policy, ingest: Ingest, jitter: Callable[[], float]) -> None:
        self._log = log
        self._policy = policy
        self._ingest = ingest
        self._jitter = jitter

    @on_conflict_again
    def handle(self, batch: Sequence[Inbound]) -> None:
        """Decide a batch and store all that follows from it in one transaction.

        A command that was seen before changes nothing. Raises Conflict after five conflicts in a row.
        """
        commands = [item for item in batch if isinstance(item, CommandReceived | CommandMalformed)]
        news = [item.notification.request_id for item in batch if isinstance(item, NotificationReceived)]
        with self._log.begin() as unit:
            seen = set(unit.seen_commands([(item.source, item.command_id) for item in commands]))
            waiting = unit.runs_awaiting(news) if news else {}
            unit.runs([item.command.run_id for item in commands if isinstance(item, CommandReceived)])
            for item in batch:
                match item:
                    case CommandReceived() | CommandMalformed():
                        if (item.source, item.command_id) not in seen:
                            seen.add((item.source, item.command_id))
                            self._obey(unit, item)
                    case NotificationReceived():
                        self._hear(unit, item, waiting.get(item.notification.request_id, ()))
                    case LetterReceived(letter_id=letter_id):
                        unit.dead_letter(item, Cause(ACTOR, letter_id, letter_id))
                    case _:
                        assert_never(item)

    def _obey(self, unit: UnitOfWork, item: CommandReceived | CommandMalformed) -> None:
        if isinstance(item, CommandMalformed):
            self._refuse(unit, item, item.command_type, item.run_id, item.reason)
            return
        command = item.command
        run = unit.runs([command.run_id]).get(command.run_id)
        decision = decide(run, command, unit.now, self._policy)
        if isinstance(decision, Refusal):
            self._refuse(unit, item, command.type, command.run_id, decision.reason)
            return
        unit.append(command.run_id, decision, Cause(ACTOR, item.command_id, command.run_id))
        unit.accept(InboxEntry(item.source, item.command_id, command.type, command.run_id, "accepted", None))

    def _refuse(
        self,
        unit: UnitOfWork,
        item: CommandReceived | CommandMalformed,
        command_type: str,
        run_id: str | None,
        reason: str,
    ) -> None:
        entry = InboxEntry(item.source, item.command_id, command_type, run_id, "refused", reason)
        unit.refuse(entry, Cause(ACTOR, item.command_id, run_id or item.command_id))

    def _hear(self, unit: UnitOfWork, item: NotificationReceived, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            run = unit.runs([run_id])[run_id]
            if events := hear(run, item.notification):
                unit.append(run_id, events, Cause(ACTOR, item.message_id, run_id))

    def due_feature_requests(self, limit: int, hold_s: float) -> Sequence[Run]:
        """Runs whose question to ingest, or whose deadline, is due; nobody else gets them for `hold_s` seconds."""
        return self._log.take_due_feature_requests(limit, hold_s)

    def ask(self, run: Run, now: datetime) -> None:
        """Ask ingest for a run's features, or see that its deadline has passed, and record what came of it."""
        question = run.features
        assert question is not None, "a run that awaits features has asked for them"
        if deadline_passed(run, now):
            self._record(run, lambda current, _: overdue(current))
        elif not question.accepted:
            self._record(run, self._answer(run))

    def _answer(self, run: Run) -> Decision:
        question = run.features
        assert question is not None, "a run that awaits features has asked for them"
        request, feature_config = run.plan
        wanted = question.range or request.range
        try:
            answer = self._ingest.request_features(
                question.request_id, wanted, request, feature_config, question.context
            )
        except IngestRefused as error:
            refused = Failure(kind="ingest_refused", words=str(error), service="ingest", field="request")
            return lambda current, now: self._fail(current, refused, now, passing=False)
        except OutsideUnavailable as error:
            away = Failure(kind="ingest_unavailable", words=str(error), service="ingest")
            return lambda current, now: self._fail(current, away, now, passing=True)
        return lambda current, _: answered(current, question.request_id, answer.status, answer.words)

    def _fail(self, run: Run, reason: Failure, now: datetime, *, passing: bool) -> Events:
        return failed(run, reason, passing=passing, now=now, policy=self._policy, jitter=self._jitter())

    @on_conflict_again
    def _record(self, asked: Run, decision: Decision) -> None:
        with self._log.begin() as unit:
            run = unit.runs([asked.run_id])[asked.run_id]
            if run.state is not State.AWAITING_FEATURES or run.features != asked.features:
                return  # preprocess, a cancel or another asker was quicker
            if events := decision(run, unit.now):
                request_id = run.features.request_id if run.features else run.run_id
                unit.append(run.run_id, events, Cause(ACTOR, request_id, run.run_id))
