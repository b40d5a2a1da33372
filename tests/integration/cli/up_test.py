"""`training-fsm up` as its user has it: kept over a kill, found by other commands, and gone without a trace."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from training_fsm.local.stack import EXAMPLES

# Without what a developer may have set: it would win over services.json.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TRAINING_FSM_")}
PATIENCE_S = 120


class Up:
    """A running `up` without workers, which nothing here needs."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._log = home.with_name("up.log")
        with self._log.open("ab") as output:
            argv = [sys.executable, "-m", "training_fsm", "up", "--home", str(home), "--workers", "0"]
            self._process = subprocess.Popen(argv, stdout=output, stderr=output, env=ENVIRONMENT)
        self.pid = self._process.pid

    def wait_until_ready(self) -> dict[str, int]:
        """The process numbers in services.json, once it is ours: a killed predecessor leaves its own."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            with suppress(FileNotFoundError):
                found: dict[str, int] = json.loads((self._home / "services.json").read_text())["processes"]
                if found["up"] == self.pid:
                    return found
            time.sleep(0.1)

    def wait_until_restarted(self, service: str, pid: int) -> None:
        """Until services.json has another process for the service."""
        deadline = time.monotonic() + PATIENCE_S
        while self.wait_until_ready()[service] == pid:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and give the exit code."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder that is not there yet."""
    return tmp_path / "home"


@pytest.fixture
def up(home: Path) -> Iterator[Up]:
    """The first `up` on it."""
    first = Up(home)
    yield first
    if first._process.poll() is None:
        first.end(signal.SIGINT)


def _cli(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "training_fsm", "--home", str(home), *words]
    return subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE_S, check=False)


def _tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}
    found = {root} & parents.keys()
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def _left(processes: set[int]) -> set[int]:
    """Who of them still runs when they should long be gone."""
    deadline = time.monotonic() + 40
    while (left := {pid for pid in processes if _tree(pid)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _submit(home: Path, example: str) -> str:
    """Send a request as soon as the orchestrator has made its topics, and give the run's id."""
    deadline = time.monotonic() + PATIENCE_S
    while (asked := _cli(home, "run", "submit", str(EXAMPLES / example))).returncode != 0:
        assert time.monotonic() < deadline, asked.stderr
        time.sleep(0.5)
    return asked.stdout.strip()


def _until_awaiting_a_worker(home: Path, run_id: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while json.loads(_cli(home, "run", "show", run_id, "--json").stdout or "{}").get("state") != "TRAINING":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_up_outlives_kills_and_leaves_nothing(home: Path, up: Up) -> None:
    """A killed `up` takes all along; the next finds the runs, outlives its broker, and ends without a trace."""
    assert up.wait_until_ready().keys() >= {"up", "postgres", "kafka", "mlflow", "ingest", "preprocess", "orchestrator"}
    assert stat.S_IMODE((home / "services.json").stat().st_mode) == 0o600

    second = _cli(home, "up")
    assert second.returncode == 1
    assert f"process {up.pid}" in second.stderr

    run_id = _submit(home, "eurusd-4h.yaml")
    _until_awaiting_a_worker(home, run_id)

    processes = _tree(up.pid)
    assert len(processes) > 7
    up.end(signal.SIGKILL)
    assert _left(processes) == set()

    again = Up(home)
    try:
        running = again.wait_until_ready()
        assert run_id in _cli(home, "run", "list").stdout
        # The broker that comes after this one knows no topic; nobody may wait for what the old one promised.
        os.kill(running["kafka"], signal.SIGKILL)
        again.wait_until_restarted("orchestrator", running["orchestrator"])
        _until_awaiting_a_worker(home, _submit(home, "spx500-1w.yaml"))
        processes = _tree(again.pid)
    finally:
        code = again.end(signal.SIGINT)
    assert code == 0
    assert _left(processes) == set()
    assert not (home / "services.json").exists()
    assert "does not answer" in _cli(home, "run", "list").stderr
