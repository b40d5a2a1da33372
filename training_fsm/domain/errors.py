"""The exceptions of the domain; adapters add their own below the same root.

TrainingFsmError
├── Conflict              another writer was first; read again, decide again
│   └── LeaseLost         another worker holds the run
├── TransitionRefused     the machine has no such arrow
├── IngestRefused         ingest said no, in its words
├── ChampionMoved         another version became champion since the contest
├── OutsideUnavailable    a service did not answer; trying again may help
└── WithFailure           no other try will help; carries what RunFailed will say
    ├── ArtifactDamaged       stored bytes are gone or not those that the log names
    ├── FeaturesMissing       the feature store lacks a service, field or range
    ├── DataUnusable          the rows are there and cannot be trained on
    ├── DeviceUnavailable     this machine lacks the device that the request names
    ├── TrainingDiverged      a loss, reward or weight is not finite
    ├── ParentMissing         the model version to continue is not there, or holds nothing to continue
    ├── ParentUnfit           parent and request do not fit together
    ├── DataDrifted           the feature store gives other values than the parent was trained on
    └── ResumeImpossible      a checkpoint does not fit the request or this machine
"""

from training_fsm.domain.facts import Failure


class TrainingFsmError(Exception):
    """Root of all errors that the package raises on purpose."""


class Conflict(TrainingFsmError):
    """Another writer was first: read again, decide again."""


class LeaseLost(Conflict):
    """Another worker holds the run: this one must stop at once."""


class TransitionRefused(TrainingFsmError):
    """The machine has no such arrow from this state."""


class ChampionMoved(TrainingFsmError):
    """Another version became champion since the contest: the challenger is to be judged against that one."""


class IngestRefused(TrainingFsmError):
    """Ingest refused the request; its words are the message."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"ingest answered {status}: {words}")
        self.status, self.words = status, words


class OutsideUnavailable(TrainingFsmError):
    """A service outside did not answer, or answered with a fault of its own; trying again may help."""

    def __init__(self, service: str, words: str) -> None:
        super().__init__(f"{service}: {words}")
        self.service, self.words = service, words


class WithFailure(TrainingFsmError):
    """An error after which no other try will help; it carries what a RunFailed event will say."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.words)
        self.failure = failure


class ArtifactDamaged(WithFailure):
    """Stored bytes are gone, or are not those that the log names."""


class FeaturesMissing(WithFailure):
    """The feature store lacks a service, a field or part of the range; the failure names which."""


class DataUnusable(WithFailure):
    """The rows are there and cannot be trained on; the failure names column and time."""


class ParentMissing(WithFailure):
    """The model version to continue is not there, or holds nothing that can be continued."""


class ParentUnfit(WithFailure):
    """Parent and request do not fit together; the failure names the fields, with both sides."""


class DataDrifted(WithFailure):
    """The feature store gives other values than the parent was trained on; the failure names where first."""


class ResumeImpossible(WithFailure):
    """A checkpoint does not fit the request or this machine."""


class DeviceUnavailable(WithFailure):
    """The request names a device that this machine does not have."""

    def __init__(self, device: str) -> None:
        words = f"agent.device: {device!r} is not available on this machine"
        super().__init__(Failure(kind="training_error", words=words, field="agent.device"))


class TrainingDiverged(WithFailure):
    """Training gave a number that is NaN or infinite and cannot go on."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(Failure(kind="training_error", words=f"training diverged at step {step}: {what}"))
        self.step, self.what = step, what
