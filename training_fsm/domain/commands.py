"""Commands: what users ask for, on topic `requested.train-model`."""

from typing import ClassVar

from pydantic import Field

from training_fsm.domain.model import Model
from training_fsm.domain.request import Request

RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Command(Model):
    """A wish about one run; `type` names it on the wire."""

    type: ClassVar[str]
    run_id: str = Field(pattern=RUN_ID)


class RequestTraining(Command):
    """Start a run; on the wire the request's fields stand beside `type` and `run_id`."""

    type = "request_training"
    request: Request


class CancelRun(Command):
    """Stop a run for good, in any state but the ends."""

    type = "cancel_run"
    actor: str = Field(default="", max_length=200)
    why: str = Field(default="", max_length=2000)


class RetryRun(Command):
    """Send a failed run back to the state it failed in."""

    type = "retry_run"
    actor: str = Field(default="", max_length=200)
    why: str = Field(default="", max_length=2000)


COMMAND_TYPES: dict[str, type[Command]] = {c.type: c for c in (RequestTraining, CancelRun, RetryRun)}
