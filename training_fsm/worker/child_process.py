"""The training child as its supervisor sees it: orders in, news out, and what is left of it when it dies."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from training_fsm.settings import Settings
from training_fsm.worker import protocol as p

LOG_LINES = 30


@dataclass(frozen=True, slots=True)
class ChildDied:
    """The child ended without being asked to."""

    exit_code: int
    last_lines: str

    def words(self) -> str:
        """How it ended, for people."""
        if self.exit_code < 0:
            return f"the training process was killed by {signal.Signals(-self.exit_code).name}"
        return f"the training process ended with exit code {self.exit_code}"


News = p.Reply | ChildDied


class ChildProcess:
    """One training child. Start it from the main thread: its death signal fires when the forking thread ends."""

    def __init__(self, settings: Settings, log: Path, news: "queue.SimpleQueue[object]") -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._news = news
        orders_read, orders_write = os.pipe()
        replies_read, replies_write = os.pipe()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "training_fsm.worker.child",
                    str(orders_read),
                    str(replies_write),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(orders_read, replies_write),
                env=_environment(settings),
                start_new_session=True,  # a Ctrl-C in a terminal is for the supervisor
            )
        os.close(orders_read)
        os.close(replies_write)
        self._orders = os.fdopen(orders_write, "wb", buffering=0)
        self._replies = os.fdopen(replies_read, "rb")
        self._killed = False
        self.used = False
        """Whether it has done anything that could leave something behind for the next run."""
        threading.Thread(target=self._listen, name="child", daemon=True).start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def order(self, order: p.Order) -> None:
        """Give an order. A child that is gone says so in its news, not here."""
        self.used = self.used or not isinstance(order, p.LookUp | p.Stop)
        try:
            self._orders.write(order.model_dump_json().encode() + b"\n")
        except BrokenPipeError:
            return

    def kill(self) -> None:
        """End it at once, without news."""
        self._killed = True
        self._process.kill()
        self._process.wait()
        self._orders.close()

    def _listen(self) -> None:
        with self._replies:
            for line in self._replies:
                if line.endswith(b"\n"):  # the last line of one that is killed may be torn
                    self._news.put(p.REPLIES.validate_json(line))
        exit_code = self._process.wait()
        if not self._killed:
            self._news.put(ChildDied(exit_code, self.last_lines()))

    def last_lines(self) -> str:
        """The end of what it printed."""
        with self._log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=LOG_LINES))


def _environment(settings: Settings) -> dict[str, str]:
    """The settings that the child reads, whatever they came from; threads that do not depend on the machine."""
    names = settings.model_dump(include={"home", "feast_repo", "feast_registry", "feast_project"}, exclude_none=True)
    ours = {f"TRAINING_FSM_{name.upper()}": str(value) for name, value in names.items()}
    return {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **os.environ, **ours}
