"""One `up` a home folder: a lock that the kernel ends with its holder, however that dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training_fsm.local.process import StartFailed

LOCK_FILE = "up.lock"


@contextmanager
def only_one_up(home: Path) -> Iterator[None]:
    """Hold a home folder, which is made where missing.

    Raises:
        StartFailed: another process holds it; the message says which.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StartFailed(f"`up` already runs on {home}: process {holder}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)
