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


class Signed(Command):
    """A wish that says who has it and why."""

    actor: str = Field(default="", max_length=200)
    why: str = Field(default="", max_length=2000)


class CancelRun(Signed):
    """Stop a run for good, in any state but the ends."""

    type = "cancel_run"


class RetryRun(Signed):
    """Send a failed run back to the state it failed in."""

    type = "retry_run"


class PauseRun(Signed):
    """Stop a training at its next checkpoint, for as long as nobody resumes it."""

    type = "pause_run"


class ResumeRun(Signed):
    """Let a paused training go on."""

    type = "resume_run"


class ExtendRun(Signed):
    """Train for more environment steps than the request says; a rejected run trains and is judged again."""

    type = "extend_run"
    additional_timesteps: int = Field(gt=0, le=10_000_000_000)


class OverrideRejection(Command):
    """Register a rejected model all the same; who does so signs it, with a reason."""

    type = "override_rejection"
    actor: str = Field(min_length=1, max_length=200)
    why: str = Field(min_length=1, max_length=2000)


COMMAND_TYPES: dict[str, type[Command]] = {
    c.type: c for c in (RequestTraining, CancelRun, PauseRun, ResumeRun, RetryRun, ExtendRun, OverrideRejection)
}
