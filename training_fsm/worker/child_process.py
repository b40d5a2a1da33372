"""The training child as its supervisor sees it: orders in, news out, and what is left of it when it dies.

Children are forked off a server that has imported everything and computed nothing: the first one pays for the imports,
each later one is there at once, and none inherits what another has done.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from training_fsm.settings import Settings
from training_fsm.worker import protocol as p

LOG_LINES = 60
_TRACEBACK_S = 0.5
_FORKSERVER = multiprocessing.get_context("forkserver")
_ENVIRONMENT = {
    # Threads that do not depend on the machine, and none that would be lost in a fork.
    "OMP_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "PYTHONUNBUFFERED": "1",
    # A crash in native code says where.
    "PYTHONFAULTHANDLER": "1",
}


@dataclass(frozen=True, slots=True)
class ChildDied:
    """The child ended without being asked to."""

    exit_code: int
    last_lines: str

    def words(self) -> str:
        """How it ended, for people."""
        if self.exit_code == -signal.SIGKILL:
            return "the training process was killed by SIGKILL: by hand, or by the kernel for want of memory"
        if self.exit_code < 0:
            return f"the training process was killed by {signal.Signals(-self.exit_code).name}"
        return f"the training process ended with exit code {self.exit_code}"


News = p.Reply | ChildDied


class ChildProcess:
    """One training child."""

    def __init__(self, settings: Settings, log: Path, news: "queue.SimpleQueue[object]") -> None:
        from training_fsm.worker.child import serve

        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._news = news
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _FORKSERVER.set_forkserver_preload(["training_fsm.worker.imports"])
        orders, self._orders = _FORKSERVER.Pipe(duplex=False)
        self._replies, replies = _FORKSERVER.Pipe(duplex=False)
        self._process = _FORKSERVER.Process(target=serve, args=(settings, orders, replies, log), daemon=True)
        self._process.start()
        orders.close()
        replies.close()
        self._killed = False
        self.used = False
        """Whether it has done anything that could leave something behind for the next run."""
        threading.Thread(target=self._listen, name="child", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid

    def order(self, order: p.Order) -> None:
        """Give an order. A child that is gone says so in its news, not here."""
        self.used = self.used or not isinstance(order, p.LookUp | p.Stop)
        try:
            self._orders.send_bytes(order.model_dump_json().encode())
        except BrokenPipeError:
            return

    def standstill(self) -> str:
        """Ask a silent child where it is; the end of what it printed."""
        from training_fsm.worker.child import SHOW_TRACEBACK

        if self.pid is not None and self._process.is_alive():
            os.kill(self.pid, SHOW_TRACEBACK)
            time.sleep(_TRACEBACK_S)
        return self.last_lines()

    def kill(self) -> None:
        """End it at once, without news."""
        self._killed = True
        self._process.kill()
        self._process.join()
        self._orders.close()

    def _listen(self) -> None:
        for reply in _messages(self._replies):
            self._news.put(p.REPLIES.validate_json(reply))
        self._process.join()
        if not self._killed:
            self._news.put(ChildDied(self._process.exitcode or 0, self.last_lines()))

    def last_lines(self) -> str:
        """The end of what it printed, without a crash's list of everything that was loaded."""
        try:
            with self._log.open(encoding="utf-8", errors="replace") as lines:
                told = (line for line in lines if not line.startswith("Extension modules: "))
                return "".join(deque(told, maxlen=LOG_LINES))
        except FileNotFoundError:
            return ""  # it died before it opened its log


def _messages(pipe: "Connection[bytes, bytes]") -> Iterator[bytes]:
    """Until the other end is gone; a message that its writer did not finish is none."""
    with pipe:
        while True:
            try:
                yield pipe.recv_bytes()
            except (EOFError, OSError):
                return
