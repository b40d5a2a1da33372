"""The states of a training run."""

from enum import StrEnum


class State(StrEnum):
    """Where a run stands. NEW is before its first event and never stored in a head."""

    NEW = "NEW"
    REQUESTED = "REQUESTED"
    AWAITING_FEATURES = "AWAITING_FEATURES"
    TRAINING = "TRAINING"
    PAUSED = "PAUSED"
    EVALUATING = "EVALUATING"
    REGISTERED = "REGISTERED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDS = frozenset({State.REGISTERED, State.REJECTED, State.FAILED, State.CANCELLED})
"""Nothing moves a run on from here by itself."""

WORK = frozenset({State.TRAINING, State.EVALUATING})
"""States with work for a worker."""
