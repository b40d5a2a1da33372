"""A killed parent takes every server with it, grandchildren and watchdogs included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from training_fsm.local import exec_child

_PARENT = """
import sys, time
from pathlib import Path
from training_fsm.local.broker import start_apache_kafka, start_embedded_broker
from training_fsm.local.mlflow_server import start_mlflow_server
from training_fsm.local.postgres import start_postgres

folder, postgres_binaries, kafka_home = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
servers = [
    start_postgres(
        folder / "postgres", log=folder / "log", binaries=Path(postgres_binaries) if postgres_binaries else None
    ),
    start_embedded_broker(log=folder / "log"),
    start_mlflow_server(folder / "mlflow", log=folder / "log"),
]
if kafka_home:
    servers.append(start_apache_kafka(Path(kafka_home), folder / "kafka", log=folder / "log"))
print(*(server.process.pid for server in servers), flush=True)
time.sleep(600)
"""


_PARENT_OF_A_SHELL = """
import sys, time
from pathlib import Path
from training_fsm.local.process import start_process

process = start_process("shell", ["/bin/sh", "-c", "sleep 600 & echo; wait"], log=Path(sys.argv[1]))
print(process.pid, flush=True)
time.sleep(600)
"""


def _living() -> dict[int, int]:
    """Parent by process number, zombies left out."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def _descendants(root: int) -> set[int]:
    parents = _living()
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {root}


def _left_after(offspring: set[int]) -> set[int]:
    """Who of the offspring still lives when it should long be gone."""
    deadline = time.monotonic() + 30
    while (left := offspring & _living().keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _started(program: str, arguments: list[str]) -> tuple[subprocess.Popen[str], set[int]]:
    """A parent that has started its servers, and their process numbers."""
    parent = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        return parent, {int(word) for word in parent.stdout.readline().split()}


def _kill(parent: subprocess.Popen[str]) -> None:
    parent.send_signal(signal.SIGKILL)
    parent.wait()


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    """PostgreSQL's backends, MLflow's worker, Java, the watchdogs: all gone after SIGKILL of their parent."""
    arguments = [str(tmp_path), os.environ.get("PG_BIN", ""), os.environ.get("KAFKA_HOME", "")]
    parent, servers = _started(_PARENT, arguments)
    offspring = _descendants(parent.pid)
    _kill(parent)
    assert len(servers) >= 3
    assert servers < offspring
    assert _left_after(offspring) == set()


def test_the_watchdog_ends_what_the_death_signal_does_not_reach(tmp_path: Path) -> None:
    """A grandchild whose own parent passes no signal on."""
    log = tmp_path / "log"
    parent, _ = _started(_PARENT_OF_A_SHELL, [str(log)])
    while not log.read_text():
        time.sleep(0.01)
    offspring = _descendants(parent.pid)
    _kill(parent)
    assert len(offspring) == 3  # shell, sleep, watchdog
    assert _left_after(offspring) == set()


def test_the_death_signal_works_without_the_watchdog(tmp_path: Path) -> None:
    """The kernel ends the child even when the watchdog was killed before."""
    parent, servers = _started(_PARENT_OF_A_SHELL, [str(tmp_path / "log")])
    children = {pid for pid, its_parent in _living().items() if its_parent == parent.pid}
    for watchdog in children - servers:
        os.kill(watchdog, signal.SIGKILL)
    _kill(parent)
    assert len(children) == 2
    assert _left_after(children) == set()
    for group in servers:  # the shell's own child, which nobody watches any more
        os.killpg(group, signal.SIGKILL)


def test_a_child_whose_parent_is_gone_already_does_not_start() -> None:
    """The parent may die before the child has asked for the death signal."""
    stranger = str(os.getppid())
    argv = [sys.executable, exec_child.__file__, stranger, str(int(signal.SIGTERM)), "-1", "-1", "/bin/echo", "here"]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (1, "")
