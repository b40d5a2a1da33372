"""A real training child, and what it still tells when its machine fails it."""

import queue
import resource
from pathlib import Path

import pytest

from training_fsm.settings import Settings
from training_fsm.worker import protocol as p
from training_fsm.worker.child_process import ChildProcess


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limits of another process are Linux's to change")
def test_failure_is_reported_where_the_log_cannot_be_written(tmp_path: Path) -> None:
    """The disk that fails the work is often the log's, too: the reply comes all the same, and the child goes on."""
    news: queue.SimpleQueue[object] = queue.SimpleQueue()
    child = ChildProcess(Settings(home=tmp_path, feast_repo=tmp_path), tmp_path / "child.log", news)
    try:
        assert news.get(timeout=120) == p.Ready()
        assert child.pid is not None
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        for _ in range(2):
            child.order(p.Inspect(path=tmp_path / "missing.zip", sha256="0" * 64, trusted=False))
            told = news.get(timeout=60)
            assert isinstance(told, p.Failed), told
            assert "missing.zip" in told.failure.words
    finally:
        child.kill()
    assert not child.last_lines(), "the log took nothing"
