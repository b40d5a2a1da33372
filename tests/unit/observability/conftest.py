"""Collectors over readings of our own, so that every family has a value."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from training_fsm.domain import events as e
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import Progress
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.observability.cached_read import CachedRead
from training_fsm.observability.families import registry_of
from training_fsm.observability.kafka_health import KafkaReading
from training_fsm.observability.orchestrator import OrchestratorCollector
from training_fsm.observability.pulse import Pulses
from training_fsm.observability.worker import LeaseReading, WorkerCollector, WorkerStatus
from training_fsm.store.event_log import Lease
from training_fsm.store.health_reads import LogReading, StateCount

LEASE = Lease("run-1", 1, "worker-1")


@dataclass
class StandingKeeper:
    """Keeps a lease without heartbeats."""

    progress: Progress | None


@dataclass
class StandingWork:
    """A claimed run on which nothing happens."""

    run: Run
    lease: Lease
    keeper: StandingKeeper
    folder: Path


@pytest.fixture
def log_reading() -> LogReading:
    """A log with something of everything."""
    training = StateCount(state=State.TRAINING, runs=4, due=1, backing_off=1, held=1, silent=1, due_s=12.5)
    return LogReading(
        states=(training, StateCount(state=State.REGISTERED, runs=7, due=0, backing_off=0, held=0, silent=0, due_s=0)),
        questions_open=2,
        oldest_question_s=61.0,
        last_position=100,
        relay_behind=3,
        relay_behind_s=1.5,
        accepted=11,
        refused=1,
        dead_letters=1,
    )


@pytest.fixture
def kafka_reading() -> KafkaReading:
    """Brokers without one of preprocess's topics."""
    return KafkaReading(
        present=frozenset({"requested.train-model"}),
        missing=("error.preprocess-data",),
        lag={"requested.train-model": 5},
    )


@pytest.fixture
def work(life: Callable[[str], tuple[e.Event, ...]], tmp_path: Path) -> StandingWork:
    """A run in training with a stored checkpoint, and another one that waits."""
    run: Run | None = None
    for event in life("run-1")[:8]:
        run = evolve(run, "run-1", event, State.TRAINING)
    assert run is not None
    (tmp_path / "outgoing").mkdir()
    (tmp_path / "outgoing" / "checkpoint-000000004096.zip").touch()
    told = Progress(step=5000, total=20480, steps_per_s=800.0, reward=None, eta_s=None, at=datetime.now(UTC))
    return StandingWork(run, LEASE, StandingKeeper(told), tmp_path)


@pytest.fixture
def orchestrator_registry(log_reading: LogReading, kafka_reading: KafkaReading) -> Iterator[CollectorRegistry]:
    """What an orchestrator that leads exports."""
    log, kafka = CachedRead("postgres", lambda: log_reading), CachedRead("kafka", lambda: kafka_reading)
    pulses = Pulses(120)
    with pulses.watched("intake", threading.Event()):
        yield registry_of(OrchestratorCollector(log, kafka, pulses, lambda: True))


@pytest.fixture
def worker_registry(work: StandingWork) -> CollectorRegistry:
    """What a worker at work exports."""
    status = WorkerStatus("worker-1")
    status.child_pid = os.getpid()
    status.work, status.ended = work, {State.FAILED: 2}
    lease = CachedRead("postgres", lambda: LeaseReading(LEASE, 29.0))
    return registry_of(WorkerCollector(lease, Pulses(720), status, lease_s=30))


@pytest.fixture
def exported(orchestrator_registry: CollectorRegistry, worker_registry: CollectorRegistry) -> frozenset[str]:
    """The name of every sample of either role."""
    return frozenset(
        sample.name
        for registry in (orchestrator_registry, worker_registry)
        for family in registry.collect()
        for sample in family.samples
    )
