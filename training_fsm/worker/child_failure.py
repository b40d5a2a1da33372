"""What went wrong in the training child, in words for the log."""

import errno
import traceback

from training_fsm.domain.errors import OutsideUnavailable, WithFailure
from training_fsm.domain.facts import Failure
from training_fsm.worker import protocol as p

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def failure_of(error: Exception, order: p.Order) -> p.Failed:
    """What went wrong, as the log will say it, and whether another try may help."""
    if isinstance(error, WithFailure):
        return p.Failed(failure=error.failure, passing=False)
    if isinstance(error, OutsideUnavailable):
        away = Failure(kind="outside_unavailable", words=str(error), service=error.service)
        return p.Failed(failure=away, passing=True)
    failure = Failure(
        kind="evaluation_error" if isinstance(order, p.Evaluate | p.Package) else "training_error",
        words=f"{_cause(error)}{type(error).__name__}: {error}",
        detail=traceback.format_exc(limit=-12),
    )
    # Memory and disk are the machine's: another one, or a later hour, may have more of them.
    return p.Failed(failure=failure, passing=isinstance(error, OSError) or _wants_memory(error))


def _cause(error: Exception) -> str:
    if _wants_memory(error):
        return "the training process ran out of memory: "
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return "the worker's disk is full, or allows no file of this size: "
    return ""


def _wants_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch says so with a RuntimeError, on the CPU one without a class of its own."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    return isinstance(error, MemoryError)
