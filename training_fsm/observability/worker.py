"""Health and metrics of a worker: what it works on, and whether its parts are alive."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from training_fsm.domain.facts import Progress
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.observability.cached_read import CachedRead, Reading
from training_fsm.observability.families import common, gauge, registry_of
from training_fsm.observability.health import Check, loop_checks, reached_check
from training_fsm.observability.pulse import Pulses
from training_fsm.observability.server import Observation
from training_fsm.store.event_log import Lease
from training_fsm.store.health_reads import PostgresHealth

ROLE = "worker"


class Keeper(Protocol):
    """What keeps a lease."""

    @property
    def progress(self) -> Progress | None:
        """What the child told last."""
        ...


class Work(Protocol):
    """A claimed run, as far as it is shown."""

    @property
    def run(self) -> Run:
        """As the worker knows it."""
        ...

    @property
    def lease(self) -> Lease:
        """Under which it works."""
        ...

    @property
    def keeper(self) -> Keeper:
        """Of this lease."""
        ...

    @property
    def folder(self) -> Path:
        """The run's spool."""
        ...


class WorkerStatus:
    """What the supervisor reports of itself."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.child_pid: int | None = None
        """Of the child that has imported everything; it may be dead by now."""
        self.work: Work | None = None
        self.ended: dict[State, int] = {}
        """How often work on a run ended in a state."""

    @contextmanager
    def working(self, work: Work) -> Iterator[None]:
        """Show a run for as long as the block lasts."""
        self.work = work
        try:
            yield
        finally:
            self.work = None
            state = work.run.state
            self.ended = self.ended | {state: self.ended.get(state, 0) + 1}

    @property
    def child_alive(self) -> bool:
        """Whether there is such a process; who started it also buries it at once, so it is none that has ended."""
        if self.child_pid is None:
            return False
        try:
            os.kill(self.child_pid, 0)
        except ProcessLookupError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class LeaseReading:
    """What Postgres says of the lease of a worker."""

    lease: Lease | None
    """None where it has none; Postgres was reached all the same."""
    left_s: float | None


class WorkerCollector(Collector):
    """Reads when it is scraped."""

    def __init__(self, lease: CachedRead[LeaseReading], pulses: Pulses, status: WorkerStatus, lease_s: float) -> None:
        self._lease = lease
        self._pulses = pulses
        self._status = status
        self._lease_s = lease_s

    def collect(self) -> Iterator[Metric]:
        """Families of this worker; those of a run only while it works on one."""
        lease, work = self._lease.get(), self._status.work
        yield from common(ROLE, self._pulses, {"postgres": lease})
        yield gauge("worker_busy", "1 while it works on a run.", work is not None)
        yield gauge("worker_child_up", "1 where the training child has imported everything and lives.", self._child())
        ended = CounterMetricFamily("training_fsm_worker_ended_runs", "Ends of work on a run.", labels=["state"])
        for state, times in self._status.ended.items():
            ended.add_metric([state.value], times)
        yield ended
        if work is not None:
            yield from self._of_work(work, lease)

    def _child(self) -> float:
        return float(self._status.child_alive)

    def _of_work(self, work: Work, lease: Reading[LeaseReading]) -> Iterator[Metric]:
        run, progress = work.run, work.keeper.progress
        labels = {"run_id": run.run_id, "state": run.state.value, "model": run.model, "worker": self._status.worker}
        yield InfoMetricFamily("training_fsm_worker_run", "The run that it works on.", value=labels)
        read = lease.value
        if read is not None and read.lease == work.lease and read.left_s is not None:
            # Without Postgres there are no heartbeats: the age of the reading is added to what it said.
            age_s = self._lease_s - read.left_s + lease.age_s
            yield gauge("worker_lease_age_seconds", "Since the last heartbeat that Postgres has.", age_s)
        if run.checkpoints:
            yield gauge(
                "worker_checkpoint_steps", "Environment step of the newest checkpoint.", run.checkpoints[-1].step
            )
        waiting = len(list((work.folder / "outgoing").glob("*.zip")))
        yield gauge("worker_waiting_checkpoints", "Checkpoints on disk that are not stored yet.", waiting)
        if progress is not None:
            yield gauge("worker_trained_steps", "Environment step of the training.", progress.step)
            yield gauge("worker_planned_steps", "Environment step at which the training ends.", progress.total)
            yield gauge("worker_steps_per_second", "Environment steps a second.", progress.steps_per_s)


def observe_worker(engine: sa.Engine, status: WorkerStatus, pulses: Pulses, lease_s: float) -> Observation:
    """Everything that a worker shows."""
    postgres = PostgresHealth(engine)

    def read() -> LeaseReading:
        work = status.work
        if work is None:
            postgres.reach()
            return LeaseReading(None, None)
        return LeaseReading(work.lease, postgres.lease_left_s(work.lease.run_id, work.lease.token))

    lease = CachedRead("postgres", read)

    def ready() -> Mapping[str, Check]:
        alive = status.child_alive
        return {
            "postgres": reached_check(lease.get()),
            "child": Check(ok=alive, says=f"process {status.child_pid}" if alive else "not there, or not ready yet"),
        }

    return Observation(
        role=ROLE,
        live=lambda: loop_checks(pulses),
        ready=ready,
        registry=registry_of(WorkerCollector(lease, pulses, status, lease_s)),
    )
