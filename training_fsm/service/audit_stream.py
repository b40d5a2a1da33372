"""One stream of the log against itself: versions, hash chain, states, and what was derived from it."""

from dataclasses import dataclass

from training_fsm.domain.errors import TransitionRefused
from training_fsm.domain.events import MessageDeadLettered
from training_fsm.domain.evolve import evolve
from training_fsm.domain.machine import destination
from training_fsm.domain.run import Run
from training_fsm.service.audit_log import LETTER_STREAM, RUN_STREAM, LoggedEvent, RecordedHead
from training_fsm.service.stored_files import Ledger

GENESIS = bytes(32)
"""Stands in for the hash before a stream's first event."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in the log that is not as it was written."""

    stream: str
    version: int | None
    """None: the whole stream is gone."""
    position: int | None
    what: str
    expected: str
    found: str


class StreamCheck:
    """One stream while it is read: what it folds to, and its first fault; what follows a fault follows from it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fault: Fault | None = None
        self.files = Ledger()
        """What the stream names and releases."""
        self._first: LoggedEvent | None = None
        self._last: LoggedEvent | None = None
        self._run: Run | None = None
        self._letter: MessageDeadLettered | None = None

    @property
    def run_id(self) -> str | None:
        """The run whose stream it is."""
        return self.name.removeprefix(RUN_STREAM) if self.name.startswith(RUN_STREAM) else None

    @property
    def letter_id(self) -> str | None:
        """The dead letter whose stream it is."""
        return self.name.removeprefix(LETTER_STREAM) if self.name.startswith(LETTER_STREAM) else None

    def take(self, logged: LoggedEvent) -> None:
        """Check one event against those before it."""
        if self.fault is not None:
            return
        version = 1 if self._last is None else self._last.version + 1
        previous = GENESIS if self._last is None else self._last.hash
        if logged.version != version:
            self._off(logged, "version", str(version), str(logged.version))
        elif logged.previous_hash != previous:
            self._off(logged, "previous hash", previous.hex(), logged.previous_hash.hex())
        else:
            self._fold(logged)
        if self.fault is None and logged.hash != logged.computed_hash:
            self._off(logged, "hash", logged.computed_hash.hex(), logged.hash.hex())
        self._first, self._last = self._first or logged, logged

    def _fold(self, logged: LoggedEvent) -> None:
        try:
            event = logged.event
        except ValueError as error:
            self._off(logged, "payload", f"a {logged.type} of version {logged.schema_version}", _one_line(error))
            return
        if self.run_id is None:
            self._letter = event if isinstance(event, MessageDeadLettered) else None
            if logged.from_state is not None or logged.to_state is not None:
                self._off(logged, "state", "none", f"{logged.from_state} to {logged.to_state}")
            return
        before = self._run.state.value if self._run else None
        if logged.from_state != before:
            self._off(logged, "from state", str(before), str(logged.from_state))
            return
        try:
            to_state = destination(self._run, event)
            self._run = evolve(self._run, self.run_id, event, to_state)
            self.files.take(event)
        except (TransitionRefused, ValueError, AssertionError) as error:
            self._off(logged, "event", f"one that fits a run in {before}", _one_line(error))
            return
        if logged.to_state != to_state.value:
            self._off(logged, "to state", to_state.value, str(logged.to_state))

    def check_head(self, head: RecordedHead | None) -> None:
        """Compare the head with what the events fold to."""
        assert self._run is not None, "a stream without a fault has folded"
        assert self._first is not None, "a stream has an event"
        assert self._last is not None, "a stream has an event"
        if head is None:
            self._off(self._last, "head", f"a head in {self._run.state.value}", "no row in run_heads")
            return
        for name, expected in _head_columns(self._run, self._first, self._last).items():
            if head.columns[name] != expected:
                self._off(self._last, f"head.{name}", str(expected), str(head.columns[name]))
                return
        if head.last_hash != self._last.hash:
            self._off(self._last, "head.last_hash", self._last.hash.hex(), head.last_hash.hex())
            return
        try:
            recorded = Run.model_validate_json(head.run)
        except ValueError as error:
            self._off(self._last, "head.run", "a folded run", _one_line(error))
            return
        # As text, since a metric that is no number equals nothing, not even itself.
        if recorded.model_dump_json() != self._run.model_dump_json():
            found, expected = recorded.model_dump(mode="json"), self._run.model_dump(mode="json")
            name = next(name for name in expected if repr(expected[name]) != repr(found[name]))
            self._off(self._last, f"head.run.{name}", str(expected[name]), str(found[name]))

    def check_letter(self, digest: str | None) -> None:
        """Compare the kept message with the digest in the event."""
        if self._letter is not None and self._last is not None and digest != self._letter.sha256:
            found = "no row in dead_letters" if digest is None else f"sha256 {digest}"
            self._off(self._last, "message", f"sha256 {self._letter.sha256}", found)

    def _off(self, logged: LoggedEvent, what: str, expected: str, found: str) -> None:
        self.fault = Fault(self.name, logged.version, logged.position, what, expected, found)


def _head_columns(run: Run, first: LoggedEvent, last: LoggedEvent) -> dict[str, object]:
    """The columns of a head that follow from the log; leases and due times move without an event."""
    return {
        "state": run.state.value,
        "version": run.version,
        "token": run.token,
        "worker": run.worker,
        "request_id": run.features.request_id if run.features else None,
        "model": run.model,
        "symbol": run.symbol,
        "timeframe": run.timeframe,
        "requested_at": first.occurred_at,
        "changed_at": last.occurred_at,
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
