"""What comes in, after the wire and before the decision."""

from dataclasses import dataclass

from training_fsm.domain.commands import Command
from training_fsm.domain.events import MessageDeadLettered
from training_fsm.domain.notifications import Notification


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A well-formed command and where it came from."""

    source: str
    command_id: str
    command: Command


@dataclass(frozen=True, slots=True)
class CommandMalformed:
    """A command whose sender can be told what is wrong with it."""

    source: str
    command_id: str
    command_type: str
    run_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class NotificationReceived:
    """News from a neighbour; `message_id` names the message it came in."""

    message_id: str
    notification: Notification


@dataclass(frozen=True, slots=True)
class LetterReceived:
    """A message that nobody can read, whole."""

    letter_id: str
    event: MessageDeadLettered
    message: bytes
    """The message's value."""
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]


Inbound = CommandReceived | CommandMalformed | NotificationReceived | LetterReceived
