"""The polling loop: what happens to a batch that will not go."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from confluent_kafka import TopicPartition

from training_fsm.domain.errors import Conflict, OutsideUnavailable
from training_fsm.domain.inbound import CommandReceived, Inbound, LetterReceived
from training_fsm.messaging.intake import Intake
from training_fsm.messaging.kafka import make_admin, make_consumer
from training_fsm.messaging.topic_watch import TopicWatch
from training_fsm.store.outbox import PostgresOutbox

if TYPE_CHECKING:
    from conftest import Station

Handle = Callable[[Sequence[Inbound]], None]


@contextmanager
def _reading(station: "Station", handle: Handle) -> Iterator[None]:
    """An intake on a thread that hands its batches to a function of the test."""
    stop = threading.Event()
    watch = TopicWatch(make_admin(station.settings), PostgresOutbox(station.engine), (station.topics.requested,))
    consumer = make_consumer(station.settings, station.group)
    intake = Intake(consumer, station.topics.requested, handle, watch, lambda: None)
    thread = threading.Thread(target=intake.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _committed(station: "Station") -> int:
    consumer = make_consumer(station.settings, station.group)
    try:
        return consumer.committed([TopicPartition(station.topics.requested, 0)], timeout=20)[0].offset
    finally:
        consumer.close()


def _send(station: "Station", *run_ids: str) -> None:
    for run_id in run_ids:
        station.send(station.topics.requested, {"type": "cancel_run", "run_id": run_id}, partition=0)
    station.flush()


def _run_ids(batch: Sequence[Inbound]) -> list[str]:
    return [item.command.run_id for item in batch if isinstance(item, CommandReceived)]


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("no"),
        KeyError("no"),
        RecursionError("no"),
        sa.exc.DataError("statement", {}, ValueError("no")),
        AssertionError("no\x00"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_poison_message_becomes_a_letter_and_the_others_go_on(station: "Station", fault: Exception) -> None:
    """Whatever one message triggers, its neighbours are stored, and it is kept with the reason."""
    stored: list[str] = []
    letters: list[LetterReceived] = []

    def handle(batch: Sequence[Inbound]) -> None:
        if "poison" in _run_ids(batch):
            raise fault
        stored.extend(_run_ids(batch))
        letters.extend(item for item in batch if isinstance(item, LetterReceived))

    _send(station, *(f"a{number}" for number in range(5)), "poison", *(f"b{number}" for number in range(5)))
    with _reading(station, handle):
        station.wait(lambda: len(stored) == 10 and letters)
        station.wait(lambda: _committed(station), lambda offset: offset == 11)
    assert stored == [f"a{number}" for number in range(5)] + [f"b{number}" for number in range(5)]
    [letter] = letters
    assert b"poison" in letter.message
    assert letter.event.reason.startswith(f"could not be handled: {type(fault).__name__}: ")
    assert "\x00" not in letter.event.reason


@pytest.mark.parametrize(
    "fault",
    [
        OutsideUnavailable("postgres", "away"),
        Conflict("busy"),
        sa.exc.InternalError("statement", {}, ValueError("damaged")),
        sa.exc.OperationalError("statement", {}, ValueError("locked")),
        sa.exc.TimeoutError("no connection free"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_fault_that_passes_is_waited_for(station: "Station", fault: Exception) -> None:
    """Nothing becomes a letter, and nothing is committed before it is stored."""
    offered: list[list[str]] = []
    healed = threading.Event()

    def handle(batch: Sequence[Inbound]) -> None:
        assert not any(isinstance(item, LetterReceived) for item in batch)
        if not healed.is_set():
            offered.append(_run_ids(batch))
            raise fault
        offered.append(_run_ids(batch))

    _send(station, "a", "b")
    with _reading(station, handle):
        station.wait(lambda: len(offered), lambda count: count >= 3)
        assert _committed(station) < 0
        healed.set()
        station.wait(lambda: _committed(station), lambda offset: offset == 2)
    assert offered[-1] == ["a", "b"]


def test_what_was_not_stored_when_told_to_stop_is_read_again(station: "Station") -> None:
    """A stop in the middle of an outage commits nothing."""
    tried = threading.Event()

    def away(batch: Sequence[Inbound]) -> None:
        tried.set()
        raise OutsideUnavailable("postgres", "away")

    _send(station, "a", "b")
    with _reading(station, away):
        assert tried.wait(60)
    stored: list[str] = []
    with _reading(station, lambda batch: stored.extend(_run_ids(batch))):
        station.wait(lambda: stored, lambda run_ids: run_ids == ["a", "b"])


def test_a_tombstone_is_a_letter(station: "Station") -> None:
    """A message without a value is read as one that says nothing."""
    letters: list[Inbound] = []
    station.producer.produce(station.topics.requested, None, key=b"k", partition=0)
    station.flush()
    with _reading(station, letters.extend):
        [letter] = station.wait(lambda: letters)
    assert isinstance(letter, LetterReceived)
    assert letter.message == b""
