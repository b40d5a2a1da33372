"""One pass of housekeeping: release, delete, prune the inbox."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import uuid4

from training_fsm.domain.errors import OutsideUnavailable, TrainingFsmError
from training_fsm.ports import Artifacts, EventLog
from training_fsm.service.janitor_service import JanitorService, ReleasedFiles, Swept
from training_fsm.service.retention_service import Release, Retention, RetentionService, RunsWithFiles


class AnotherPassError(TrainingFsmError):
    """Housekeeping is at work already, in another process."""


@dataclass(frozen=True, slots=True)
class MessageLifetime:
    """How long a message can lie in a topic."""

    longest: timedelta | None
    """None: for ever."""


class CommandTopic(Protocol):
    """The topic that commands come from."""

    def lifetime(self) -> MessageLifetime | None:
        """How long a command can be read again; None where the broker does not tell. Raises OutsideUnavailable."""
        ...


class HousekeepingStore(RunsWithFiles, ReleasedFiles, Protocol):
    """What a pass needs of Postgres."""

    def alone(self) -> AbstractContextManager[bool]:
        """Whether no other pass is at work, for as long as the block lasts."""
        ...

    def now(self) -> datetime:
        """The database's clock."""
        ...

    def old_commands(self, before: datetime) -> int:
        """How many commands came before a time."""
        ...

    def prune_commands(self, before: datetime) -> int:
        """Forget the commands that came before a time; how many there were."""
        ...


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of the inbox."""

    commands: int
    before: datetime | None
    """None: nothing could be forgotten."""
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass did, or would do."""

    releases: tuple[Release, ...]
    swept: Swept
    pruned: Pruned
    busy: tuple[str, ...] = ()
    """Runs that moved on again and again while their files were to be released."""

    @property
    def complete(self) -> bool:
        """Nothing was left for the next pass because something did not answer."""
        return not self.swept.troubles and not self.busy


class HousekeepingService:
    """Puts the parts of a pass together; one pass at a time."""

    def __init__(
        self, log: EventLog, store: HousekeepingStore, topic: CommandTopic, retention: Retention, inbox: timedelta
    ) -> None:
        self._store = store
        self._topic = topic
        self._inbox = inbox
        self._retention = RetentionService(log, store, retention)
        self._janitor = JanitorService(store)

    def plan(self) -> Pass:
        """What a pass would do now."""
        releases = self._retention.planned(self._store.now())
        return Pass(releases, self._janitor.planned(releases), self._prune(self._store.old_commands))

    def run(self, artifacts: Artifacts) -> Pass:
        """One pass. Raises AnotherPassError, OutsideUnavailable where Postgres does not answer."""
        with self._store.alone() as alone:
            if not alone:
                raise AnotherPassError("housekeeping is at work already, in another process")
            released, busy = self._retention.release(str(uuid4()), self._store.now())
            return Pass(released, self._janitor.sweep(artifacts), self._prune(self._store.prune_commands), busy)

    def _prune(self, prune: Callable[[datetime], int]) -> Pruned:
        """A command must not be forgotten while it can be read again: it would be obeyed twice."""
        age, remark = self._inbox, None
        try:
            lifetime = self._topic.lifetime()
        except OutsideUnavailable as error:
            return Pruned(0, None, f"the inbox is left alone: {error}")
        if lifetime is None:
            remark = (
                "the broker does not tell how long commands lie in their topic: retention_inbox_days must be longer"
            )
        elif lifetime.longest is None:
            return Pruned(0, None, "the inbox is left alone: commands lie in their topic for ever")
        elif lifetime.longest > age:
            age = lifetime.longest
            remark = f"commands lie in their topic for up to {age / timedelta(days=1):g} days: none is forgotten sooner"
        before = self._store.now() - age
        return Pruned(prune(before), before, remark)
