"""The orchestrator's timer where no process can be started."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from training_fsm import housekeeping_timer
from training_fsm.housekeeping_timer import HousekeepingTimer


def test_a_pass_that_cannot_start_is_told_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer's thread lives on, or it would take the orchestrator with it."""
    python, passed = tmp_path / "python", tmp_path / "passed"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(housekeeping_timer, "LOOK_S", 0.01)
    stop = threading.Event()
    died: list[Exception] = []

    def run() -> None:
        try:
            HousekeepingTimer(0.01 / 3600, tmp_path).run(stop)
        except OSError as error:
            died.append(error)

    with structlog.testing.capture_logs() as lines:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            _until(lambda: len(lines) >= 2 or bool(died))
            refused = list(lines)
            script = tmp_path / "script"
            script.write_text(f'#!/bin/sh\necho "$@" > {passed}\n')
            script.chmod(0o755)
            script.rename(python)
            _until(lambda: passed.exists() or bool(died))
        finally:
            stop.set()
            thread.join()
    assert not died
    words = f"[Errno 2] No such file or directory: '{python}'"
    assert refused[:2] == [{"event": "housekeeping not started", "log_level": "error", "error": words}] * 2
    assert passed.read_text().endswith("admin housekeeping --json\n")


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
