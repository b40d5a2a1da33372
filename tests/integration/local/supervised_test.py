"""One service under supervision, with shells for services."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from training_fsm.local.home_lock import only_one_up
from training_fsm.local.process import ManagedProcess, StartFailed, start_process
from training_fsm.local.supervised import DEATHS_MAX, Supervised


def _shell(folder: Path, script: str) -> Callable[[], ManagedProcess]:
    return lambda: start_process("shell", ["/bin/sh", "-c", script], log=folder / "shell.log")


def _tend_until(service: Supervised, said: list[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, said
        service.tend(said.append)
        time.sleep(0.01)


def test_killed_service_runs_again(tmp_path: Path) -> None:
    """A service that dies is started anew, with a line for its death and one for its start."""
    said: list[str] = []
    service = Supervised("shell", _shell(tmp_path, "exec sleep 600"), pause_first_s=0.01)
    first = service.start()
    first.popen.kill()
    _tend_until(service, said, lambda: len(said) == 2)
    assert service.process is not None
    assert service.process.pid != first.pid
    assert service.process.alive()
    assert said == [
        "shell ended with code -9, starts again in 0.01 s",
        f"shell runs again, process {service.process.pid}",
    ]
    service.stop()


def test_service_that_never_lives_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    """After so many quick deaths in a row trying again is no help, and the end of the log says why."""
    said: list[str] = []
    service = Supervised("shell", _shell(tmp_path, "echo no such database; exit 3"), pause_first_s=0.001)
    service.start()
    with pytest.raises(StartFailed, match=r"(?s)shell ended with code 3.*no such database"):
        _tend_until(service, said, lambda: False)
    assert len([line for line in said if "ended" in line]) == DEATHS_MAX


def test_failure_to_start_counts_as_a_death(tmp_path: Path) -> None:
    """A service that cannot even be launched again is waited for, then given up as well."""
    said: list[str] = []
    launches = iter([_shell(tmp_path, "exit 0")])

    def launch() -> ManagedProcess:
        for once in launches:
            return once()
        raise StartFailed("its port is taken")

    service = Supervised("shell", launch, pause_first_s=0.001)
    service.start()
    with pytest.raises(StartFailed, match=r"shell did not start.*its port is taken"):
        _tend_until(service, said, lambda: False)


def test_second_holder_of_a_home_learns_who_the_first_is(tmp_path: Path) -> None:
    """One `up` a home; the other is told which process it is."""
    with only_one_up(tmp_path), pytest.raises(StartFailed, match=f"process {os.getpid()}"), only_one_up(tmp_path):
        pass
    with only_one_up(tmp_path):
        """Free again."""
