"""Whether loops still turn. Every loop asks its stop event once a turn, and the asking is its pulse."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class PulsedStop(threading.Event):
    """Another event, with the time at which it was last asked."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._watched = stop
        self._asked_at = time.monotonic()

    def silence_s(self) -> float:
        """Since the loop last asked."""
        return time.monotonic() - self._asked_at

    def is_set(self) -> bool:
        """Whether the loop is to stop."""
        self._asked_at = time.monotonic()
        return self._watched.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be told to stop."""
        self._asked_at = time.monotonic()
        told = self._watched.wait(timeout)
        self._asked_at = time.monotonic()
        return told

    def set(self) -> None:
        """Tell every loop of this process to stop."""
        self._watched.set()

    def clear(self) -> None:
        """Take it back."""
        self._watched.clear()


class Pulses:
    """The loops of this process, each with its longest allowed silence."""

    def __init__(self, silence_s_max: float) -> None:
        self.silence_s_max = silence_s_max
        self._loops: dict[str, PulsedStop] = {}

    @contextmanager
    def watched(self, name: str, stop: threading.Event) -> Iterator[threading.Event]:
        """A stop event for a loop, watched for as long as the block lasts."""
        pulsed = PulsedStop(stop)
        self._loops[name] = pulsed
        try:
            yield pulsed
        finally:
            del self._loops[name]

    def silences_s(self) -> dict[str, float]:
        """For each loop, the time since it last turned."""
        return {name: loop.silence_s() for name, loop in self._loops.copy().items()}
