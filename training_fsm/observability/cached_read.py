"""Reads of the outside that a scrape may ask for at any time: bounded in time, one at once, kept for a few seconds."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

FRESH_S = 5.0
PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading(Generic[T_co]):
    """The newest that was read, and what came of the newest try."""

    value: T_co | None
    """None while nothing has ever been read."""
    age_s: float
    """Since `value` was read; infinite without one."""
    error: str | None
    """Why the newest try gave nothing; None where it did."""


class CachedRead(Generic[T]):
    """A read that is made again only when its last result is some seconds old, and never twice at once."""

    def __init__(
        self, name: str, read: Callable[[], T], *, fresh_s: float = FRESH_S, patience_s: float = PATIENCE_S
    ) -> None:
        self.name = name
        self._read = read
        self._fresh_s = fresh_s
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._done.set()
        self._tried_at = self._read_at = -float("inf")
        self._value: T | None = None
        self._error: str | None = None

    def get(self) -> Reading[T]:
        """The newest reading, after a wait of `patience_s` at most; one that hangs is not waited for."""
        with self._lock:
            if self._done.is_set() and time.monotonic() - self._tried_at > self._fresh_s:
                self._done.clear()
                # A daemon: a read that hangs must not keep the process from ending.
                threading.Thread(target=self._try, name=f"read-{self.name}", daemon=True).start()
        answered = self._done.wait(self._patience_s)
        with self._lock:
            error = self._error if answered else f"no answer within {self._patience_s:g} s"
            return Reading(self._value, time.monotonic() - self._read_at, error)

    def _try(self) -> None:
        value: T | None = None
        error: str | None = None
        try:
            value = self._read()
        except Exception as failure:  # noqa: BLE001  (whatever it is, the reading tells it)
            error = " ".join(f"{type(failure).__name__}: {failure}".split())[:500]
        with self._lock:
            self._tried_at, self._error = time.monotonic(), error
            if error is None:
                self._value, self._read_at = value, self._tried_at
            self._done.set()
