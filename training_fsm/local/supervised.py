"""One service under supervision: started, started again when it dies, given up when it dies again and again."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from training_fsm.local.process import ManagedProcess, StartFailed

QUICK_S = 20.0
"""Who lived longer was well, and begins to count anew."""
DEATHS_MAX = 5
PAUSE_MAX_S = 10.0


@dataclass(slots=True)
class Supervised:
    """A service of the stack. All methods are for the main thread, which processes are started from."""

    name: str
    launch: Callable[[], ManagedProcess]
    """Starts it; raises StartFailed where that is known at once."""
    ready: Callable[[ManagedProcess], bool] = lambda _: True
    grace_s: float = 10.0
    """How long it may take to stop in order."""
    pause_first_s: float = 0.5
    """Between its first death and its next start; doubles with every death in a row."""
    process: ManagedProcess | None = None
    _deaths: int = 0
    _launched_at: float = 0.0
    _again_at: float = 0.0

    def start(self) -> ManagedProcess:
        """Start it. Raises StartFailed."""
        self._launched_at = time.monotonic()
        self.process = process = self.launch()
        return process

    def stop(self) -> None:
        """Stop it in order; harmless when it does not run."""
        if self.process is not None:
            self.process.stop(self.grace_s)
            self.process = None

    def tend(self, say: Callable[[str], None]) -> bool:
        """Look after it once, without waiting; True where it was started anew.

        Raises StartFailed where it died too often too quickly; the message has the end of its log.
        """
        if self.process is not None:
            if self.process.alive():
                return False
            words = f"ended with code {self.process.popen.returncode}"
            last = f"the end of {self.process.log}:\n{self.process.last_lines()}"
            self.process = None
            self._count_death(words, last, say)
            return False
        if time.monotonic() < self._again_at:
            return False
        try:
            process = self.start()
        except StartFailed as error:
            self._count_death("did not start", str(error), say)
            return False
        say(f"{self.name} runs again, process {process.pid}")
        return True

    def _count_death(self, words: str, last: str, say: Callable[[str], None]) -> None:
        now = time.monotonic()
        self._deaths = self._deaths + 1 if now - self._launched_at < QUICK_S else 1
        if self._deaths > DEATHS_MAX:
            raise StartFailed(f"{self.name} {words}, {self._deaths} times in a row; {last}")
        pause_s = min(self.pause_first_s * 2 ** (self._deaths - 1), PAUSE_MAX_S)
        self._again_at = now + pause_s
        say(f"{self.name} {words}, starts again in {pause_s:g} s")
