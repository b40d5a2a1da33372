"""Child processes that die with us: stopped in order, and gone as well when this process is killed with SIGKILL.

Two nets hold each child. The kernel sends it a death signal when its parent ends (Linux, ``PR_SET_PDEATHSIG``), and a
watchdog, a shell of its own that waits for the end of a pipe, ends the child's whole process group, grandchildren
included. The kernel's signal fires when the *thread* that forked ends, so processes are started from the main thread.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_EXEC_CHILD = Path(__file__).with_name("exec_child.py")

# A line read means that the parent stopped the group itself; the end of the pipe means that the parent is dead.
_WATCHDOG = """
read -r _ && exit 0
kill -s "$1" -- "-$2"
tenths=0
while [ "$tenths" -lt 100 ] && kill -0 -- "-$2"; do sleep 0.1; tenths=$((tenths + 1)); done
kill -s KILL -- "-$2"
"""

_POLL_S = 0.02
_PREDECESSOR_ENDS_S = 2


class StartFailed(Exception):
    """A local server did not become ready; the message names it and has the last lines of its log."""


class ManagedProcess:
    """A child in a process group of its own, with the log that its output goes to.

    Leaving it as a context manager stops it.
    """

    def __init__(
        self, name: str, popen: subprocess.Popen[bytes], log: Path, log_start: int, stop_signal: signal.Signals
    ) -> None:
        self.name = name
        self.popen = popen
        self.pid = popen.pid
        self.log = log
        self._log_start = log_start
        self._stop_signal = stop_signal
        self._watchdog: subprocess.Popen[bytes] | None = None

    def watch(self, death_signal: signal.Signals) -> None:
        """Start the watchdog that ends the group when this process dies."""
        script = ["/bin/sh", "-c", _WATCHDOG, "watchdog", death_signal.name.removeprefix("SIG"), str(self.pid)]
        self._watchdog = subprocess.Popen(
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def alive(self) -> bool:
        """Whether the child still runs; what its group left behind is ended once it does not."""
        if self.popen.returncode is None and not self._exited():
            return True
        self._finish()
        return False

    def stop(self, grace_s: float = 10) -> None:
        """Send the stop signal, wait up to ``grace_s`` seconds, then kill the whole group. Harmless when repeated."""
        if self.alive():
            os.kill(self.pid, self._stop_signal)
            deadline = time.monotonic() + grace_s
            while not self._exited() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        self._finish()

    def last_lines(self, count: int = 15) -> str:
        """The end of what the child wrote to its log since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])

    def _exited(self) -> bool:
        # WNOWAIT leaves the zombie, so the number of the group cannot be taken by a stranger before _finish.
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # reaped by somebody else
            return True

    def _finish(self) -> None:
        if self.popen.returncode is None:
            # macOS answers EPERM for a group of nothing but zombies.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.popen.wait()
        if self._watchdog is not None:
            with suppress(BrokenPipeError):
                self._watchdog.communicate(b"\n")
            self._watchdog = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_process(
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    uid: int | None = None,
    gid: int | None = None,
    cwd: Path | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    death_signal: signal.Signals = signal.SIGTERM,
    stdin: IO[bytes] | None = None,
    pass_fds: Collection[int] = (),
) -> ManagedProcess:
    """Start a child that dies with this process.

    Its output is appended to ``log``; ``env`` replaces the whole environment; ``stop_signal`` is what ``stop`` sends,
    ``death_signal`` what the child gets when this process dies. Start from the main thread only.

    Raises:
        RuntimeError: called from another thread, whose end would end the child.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"{name}: start processes from the main thread, a child dies with the thread that forked it")
    log.parent.mkdir(parents=True, exist_ok=True)
    account = [str(-1 if uid is None else uid), str(-1 if gid is None else gid)]
    shim = [sys.executable, "-I", "-S", str(_EXEC_CHILD), str(os.getpid()), str(int(death_signal)), *account]
    with log.open("ab") as output:
        log_start = output.tell()
        popen = subprocess.Popen(
            [*shim, *argv],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    process = ManagedProcess(name, popen, log, log_start, stop_signal)
    try:
        process.watch(death_signal)
    except BaseException:
        process.stop()
        raise
    return process


def wait_until(ready: Callable[[], bool], process: ManagedProcess, timeout_s: float, what: str) -> None:
    """Wait until ``ready()`` of a starting process.

    Raises:
        StartFailed: the process ended, or was not ready within ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if not process.alive():
            raise StartFailed(
                f"{what} ended with code {process.popen.returncode} before it was ready; "
                f"the end of {process.log}:\n{process.last_lines()}"
            )
        if ready():
            return
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{what} was not ready within {timeout_s:g} s; the end of {process.log}:\n{process.last_lines()}"
            )
        time.sleep(_POLL_S)


def run_to_end(process: ManagedProcess, timeout_s: float) -> None:
    """Wait for a preparing step to end well.

    Raises:
        StartFailed: it ended with another code than 0, or not within ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    with process:
        while process.alive():
            if time.monotonic() > deadline:
                raise StartFailed(f"{process.name} did not end within {timeout_s:g} s")
            time.sleep(_POLL_S)
    if process.popen.returncode != 0:
        raise StartFailed(
            f"{process.name} ended with code {process.popen.returncode}; "
            f"the end of {process.log}:\n{process.last_lines()}"
        )


def free_port() -> int:
    """A TCP port on loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claim_port(port: int | None, what: str) -> int:
    """The wanted port, or a free one; waits a moment for a predecessor that is still ending.

    Raises:
        StartFailed: something else listens on the port.
    """
    if port is None:
        return free_port()
    deadline = time.monotonic() + _PREDECESSOR_ENDS_S
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise StartFailed(f"{what}: port {port} on 127.0.0.1 cannot be used: {error.strerror}") from error
            else:
                return port
        time.sleep(0.1)


def accepts_connections(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return False
        # Without a listener, TCP may connect an ephemeral port to itself.
        return bool(probe.getsockname() != probe.getpeername())


def answers_http(port: int, path: str) -> bool:
    """Whether a server on loopback answers a GET with success; no proxy is asked."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 300
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
