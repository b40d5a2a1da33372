"""A scrape must not hurt: reads are bounded, single and kept for a moment."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from training_fsm.observability.cached_read import CachedRead


def _numbers() -> Iterator[int]:
    yield from range(1, 1000)


def test_result_is_kept_while_it_is_fresh() -> None:
    """Ten scrapes within a moment are one read."""
    numbers = _numbers()
    read = CachedRead("numbers", lambda: next(numbers), fresh_s=3600)
    assert [read.get().value for _ in range(10)] == [1] * 10


def test_result_is_read_again_when_it_is_old() -> None:
    """Nothing is kept longer than it is fresh."""
    numbers = _numbers()
    read = CachedRead("numbers", lambda: next(numbers), fresh_s=0)
    assert [read.get().value for _ in range(3)] == [1, 2, 3]


def test_hanging_read_is_neither_waited_for_nor_doubled() -> None:
    """However often it is asked for, one hanging read is one, and the value before it stays, with its age."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    def read() -> str:
        begun.release()
        if not gate.is_set():
            gate.wait()
        return "answered"

    gate.set()
    cached = CachedRead("gate", read, fresh_s=0, patience_s=0.05)
    assert cached.get().value == "answered"
    gate.clear()
    with ThreadPoolExecutor(8) as pool:
        readings = list(pool.map(lambda _: cached.get(), range(8)))
    assert {reading.value for reading in readings} == {"answered"}
    assert {reading.error for reading in readings} == {"no answer within 0.05 s"}
    assert all(reading.age_s > 0 for reading in readings)
    assert begun.acquire(blocking=False)
    assert begun.acquire(blocking=False)
    assert not begun.acquire(blocking=False)
    gate.set()


def test_failure_is_told_and_the_last_value_kept() -> None:
    """What went wrong is said, in one line; the next read that goes well takes it back."""
    answers: list[object] = [1, ValueError("two\nlines"), 3]

    def read() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cached = CachedRead("answers", read, fresh_s=0)
    assert cached.get().error is None
    failed = cached.get()
    assert (failed.value, failed.error) == (1, "ValueError: two lines")
    recovered = cached.get()
    assert (recovered.value, recovered.error) == (3, None)


def test_nothing_read_yet_has_no_age() -> None:
    """Without a first value the age is infinite, which no bound forgives."""

    def read() -> int:
        raise OSError("away")

    reading = CachedRead("away", read).get()
    assert reading.value is None
    assert reading.age_s == float("inf")


@pytest.mark.parametrize("failing", [True, False])
def test_failures_are_kept_as_well(failing: bool) -> None:
    """A service that is away is not asked at every scrape either."""
    asked = []

    def read() -> int:
        asked.append(1)
        if failing:
            raise OSError("away")
        return 1

    cached = CachedRead("service", read, fresh_s=3600)
    for _ in range(5):
        cached.get()
    assert len(asked) == 1
