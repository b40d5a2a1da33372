"""Children start under watch and leave nothing behind."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from training_fsm.local.process import (
    StartFailed,
    claim_port,
    free_port,
    run_to_end,
    start_process,
    wait_until,
)

_GRANDCHILD = 'sleep 600 & echo "$!"; wait'


def _eventually(condition: Callable[[], bool], timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _written(log: Path) -> bool:
    return log.exists() and log.read_text().endswith("\n")


def test_stop_ends_grandchildren_too(tmp_path: Path) -> None:
    """A grandchild that its parent would leave behind is ended with the group."""
    log = tmp_path / "log"
    with start_process("shell", ["/bin/sh", "-c", _GRANDCHILD], log=log) as process:
        wait_until(lambda: _written(log), process, 20, "shell")
        grandchild = int(log.read_text())
        assert not _is_gone(grandchild)
    assert not process.alive()
    assert _eventually(lambda: _is_gone(grandchild))


def test_a_child_that_ends_by_itself_leaves_no_grandchild(tmp_path: Path) -> None:
    """As soon as we see that the child ended, its group is ended as well."""
    log = tmp_path / "log"
    process = start_process("shell", ["/bin/sh", "-c", 'sleep 600 & echo "$!"'], log=log)
    assert _eventually(lambda: not process.alive())
    assert process.popen.returncode == 0
    assert _eventually(lambda: _is_gone(int(log.read_text())))


def test_a_child_that_ignores_its_stop_signal_is_killed(tmp_path: Path) -> None:
    """After the grace the whole group gets SIGKILL."""
    log = tmp_path / "log"
    process = start_process("shell", ["/bin/sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"], log=log)
    wait_until(lambda: _written(log), process, 20, "shell")
    process.stop(grace_s=0.1)
    process.stop()
    assert process.popen.returncode == -signal.SIGKILL


def test_the_stop_signal_is_the_one_asked_for(tmp_path: Path) -> None:
    """PostgreSQL, for one, waits for its clients at SIGTERM and not at SIGINT."""
    log = tmp_path / "log"
    script = "trap 'exit 7' INT; echo; while :; do sleep 0.05; done"
    process = start_process("shell", ["/bin/sh", "-c", script], log=log, stop_signal=signal.SIGINT)
    wait_until(lambda: _written(log), process, 20, "shell")
    process.stop()
    assert process.popen.returncode == 7


def test_a_child_that_fails_is_quoted(tmp_path: Path) -> None:
    """The error has the name, the code and the last words of this start only."""
    log = tmp_path / "log"
    log.write_text("words of an earlier start\n")
    process = start_process("shell", ["/bin/sh", "-c", "echo no luck; exit 3"], log=log)
    with pytest.raises(StartFailed, match=r"(?s)my server ended with code 3 .*no luck") as error:
        wait_until(lambda: False, process, 20, "my server")
    assert "earlier start" not in str(error.value)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing program reads as such."""
    with pytest.raises(StartFailed, match="cannot start /nowhere/program: No such file"):
        run_to_end(start_process("step", ["/nowhere/program"], log=tmp_path / "log"), 20)


def test_a_step_that_hangs_is_ended(tmp_path: Path) -> None:
    """A preparing step has its bound in time."""
    process = start_process("step", ["/bin/sleep", "600"], log=tmp_path / "log")
    with pytest.raises(StartFailed, match=r"step did not end within 0\.1 s"):
        run_to_end(process, 0.1)
    assert _is_gone(process.pid)


def test_only_the_main_thread_starts_processes(tmp_path: Path) -> None:
    """The death signal fires at the end of the forking thread, so another thread is refused."""
    errors: list[str] = []

    def start() -> None:
        try:
            start_process("shell", ["/bin/true"], log=tmp_path / "log")
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the account")
def test_a_child_gives_up_root_and_its_groups(tmp_path: Path) -> None:
    """The account is changed whole: user, group, and no further groups."""
    log = tmp_path / "log"
    process = start_process("id", ["/bin/sh", "-c", "id -u; id -g; id -G"], log=log, uid=65534, gid=65533)
    run_to_end(process, 20)
    assert log.read_text().split() == ["65534", "65533", "65533"]


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that somebody listens on is refused, with its number and the server that wanted it."""
    monkeypatch.setattr("training_fsm.local.process._PREDECESSOR_ENDS_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartFailed, match=rf"my server: port {port} on 127\.0\.0\.1 cannot be used: .*in use"):
            claim_port(port, "my server")


def test_a_port_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A predecessor that ends in the meantime does not hinder."""
    monkeypatch.setattr("training_fsm.local.process._PREDECESSOR_ENDS_S", 20)
    other = socket.create_server(("127.0.0.1", 0))
    port = other.getsockname()[1]
    timer = threading.Timer(0.2, other.close)
    timer.start()
    assert claim_port(port, "my server") == port
    timer.join()


def test_a_free_port_is_given_where_none_is_wanted() -> None:
    """Without a wish a free port is taken."""
    assert claim_port(None, "my server") > 0
    assert free_port() > 0
