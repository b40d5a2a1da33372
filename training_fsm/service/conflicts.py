"""Optimistic concurrency: what lost a race reads again and decides again."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from training_fsm.domain.errors import Conflict, LeaseLost

P = ParamSpec("P")
R = TypeVar("R")


def on_conflict_again(function: Callable[P, R]) -> Callable[P, R]:
    """Run a whole transaction again after a Conflict, five times at most; a lost lease is final."""
    retrying = retry(
        retry=retry_if_exception(lambda error: isinstance(error, Conflict) and not isinstance(error, LeaseLost)),
        stop=stop_after_attempt(5),
        wait=wait_random_exponential(multiplier=0.005, max=0.1),
        reraise=True,
    )(function)
    return functools.wraps(function)(retrying)
