"""A killed parent takes every server with it, grandchildren and watchdogs included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    """PostgreSQL's backends, MLflow's worker, Java: all gone shortly after SIGKILL, and the data can be used again."""
    arguments = [str(tmp_path), os.environ.get("PG_BIN", ""), os.environ.get("KAFKA_HOME", "")]
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, *arguments], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        servers = {int(word) for word in parent.stdout.readline().split()}
        offspring = _descendants(parent.pid)
        assert len(servers) >= 3
        assert servers < offspring
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 30
    while (left := offspring & _living().keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == set()
