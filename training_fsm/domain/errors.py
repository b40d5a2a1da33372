"""The exceptions of the package.

TrainingFsmError
├── Conflict              another writer was first; read again, decide again
│   └── LeaseLost         another worker holds the run
├── TransitionRefused     the machine has no such arrow
├── IngestRefused         ingest said no, in its words
├── OutsideUnavailable    a service did not answer; trying again may help
├── ArtifactDamaged       stored bytes are gone or not those that the log names
├── FeaturesMissing       the feature store lacks a service, field or range
├── DataUnusable          the rows are there and cannot be trained on
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


class _WithFailure(TrainingFsmError):
    """An error that already says what a RunFailed event will."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.words)
        self.failure = failure


class ArtifactDamaged(_WithFailure):
    """Stored bytes are gone, or are not those that the log names."""


class FeaturesMissing(_WithFailure):
    """The feature store lacks a service, a field or part of the range; the failure names which."""


class DataUnusable(_WithFailure):
    """The rows are there and cannot be trained on; the failure names column and time."""


class ResumeImpossible(_WithFailure):
    """A checkpoint does not fit the request or this machine."""
