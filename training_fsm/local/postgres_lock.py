"""The lock file that a killed PostgreSQL leaves behind, and two starts on one data folder at the same time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training_fsm.local.process import StartFailed

_WAIT_S = 15


@contextmanager
def only_one_start(data_dir: Path) -> Iterator[None]:
    """Hold back other starts on the same folder; the kernel ends the hold when we die."""
    with data_dir.with_name(data_dir.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_stale_lock(data_dir: Path) -> None:
    """Remove `postmaster.pid` when no server stands behind it.

    PostgreSQL does so by itself, but not while the killed server is a zombie or its number is another process by now.
    A server that still ends is waited for. Orphaned backends are PostgreSQL's own check (by the folder's inode), which
    needs no lock file.

    Raises:
        StartFailed: a server runs on the folder.
    """
    lock = data_dir / "postmaster.pid"
    deadline = time.monotonic() + _WAIT_S
    while (pid := lock_holder(lock)) is not None:
        # Our own dead child stays a zombie until we ask for it.
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if not _runs_on(pid, data_dir):
            lock.unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            raise StartFailed(f"a PostgreSQL server (process {pid}) already runs on {data_dir}; stop it first")
        time.sleep(0.05)


def lock_holder(lock: Path) -> int | None:
    """The process number in a `postmaster.pid`; None when there is no such file."""
    try:
        return abs(int(lock.read_text().split("\n", 1)[0]))
    except FileNotFoundError:
        return None


def _runs_on(pid: int, data_dir: Path) -> bool:
    process = Path("/proc") / str(pid)
    if not Path("/proc/self").exists():  # no Linux: the number has to do
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X") and os.path.samefile(process / "cwd", data_dir)
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or not of our account
        return False
