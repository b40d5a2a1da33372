"""What the collectors make of what they read."""

import re
import subprocess
import sys
import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from training_fsm.domain.states import State
from training_fsm.observability.cached_read import CachedRead
from training_fsm.observability.families import registry_of
from training_fsm.observability.orchestrator import OrchestratorCollector
from training_fsm.observability.pulse import Pulses
from training_fsm.observability.worker import LeaseReading, WorkerCollector, WorkerStatus
from training_fsm.store.event_log import Lease
from training_fsm.store.health_reads import LogReading

NAME = re.compile(r"training_fsm_[a-z][a-z_]*[a-z]")


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_names_are_of_ours_or_of_the_process(exported: frozenset[str]) -> None:
    """One prefix for everything that we count; the process's own names are Prometheus's."""
    assert [name for name in exported if not NAME.fullmatch(name) and not name.startswith("process_")] == []


def test_every_state_is_counted_also_at_zero(orchestrator_registry: CollectorRegistry) -> None:
    """A state without runs is 0, not absent: a graph without it would look like one without data."""
    counted = {
        state: _value(orchestrator_registry, "training_fsm_runs", state=state.value)
        for state in State
        if state is not State.NEW
    }
    assert counted == dict.fromkeys(counted, 0) | {State.TRAINING: 4, State.REGISTERED: 7}


def test_numbers_of_the_log(orchestrator_registry: CollectorRegistry) -> None:
    """Each number lies under its own name."""
    wanted = {
        "training_fsm_due_runs": 1,
        "training_fsm_oldest_due_run_seconds": 12.5,
        "training_fsm_backing_off_runs": 1,
        "training_fsm_leased_runs": 1,
        "training_fsm_expired_leases": 1,
        "training_fsm_open_feature_requests": 2,
        "training_fsm_oldest_feature_request_seconds": 61,
        "training_fsm_events_total": 100,
        "training_fsm_relay_lag_events": 3,
        "training_fsm_relay_lag_seconds": 1.5,
        "training_fsm_relay_leads": 1,
        "training_fsm_last_hour_dead_letters": 1,
    }
    assert {name: _value(orchestrator_registry, name) for name in wanted} == wanted
    assert _value(orchestrator_registry, "training_fsm_last_hour_commands", outcome="refused") == 1
    assert _value(orchestrator_registry, "training_fsm_last_hour_commands", outcome="accepted") == 11


def test_topics_and_lag(orchestrator_registry: CollectorRegistry) -> None:
    """A missing topic is 0, and lag is told where it could be measured."""
    assert _value(orchestrator_registry, "training_fsm_topic_present", topic="error.preprocess-data") == 0
    assert _value(orchestrator_registry, "training_fsm_topic_present", topic="requested.train-model") == 1
    assert _value(orchestrator_registry, "training_fsm_intake_lag_messages", topic="requested.train-model") == 5
    assert _value(orchestrator_registry, "training_fsm_intake_lag_messages", topic="error.preprocess-data") is None


def test_worker_at_work(worker_registry: CollectorRegistry) -> None:
    """The run, its progress, its lease, its child and what waits to be stored."""
    wanted = {
        "training_fsm_worker_busy": 1,
        "training_fsm_worker_trained_steps": 5000,
        "training_fsm_worker_planned_steps": 20480,
        "training_fsm_worker_steps_per_second": 800,
        "training_fsm_worker_checkpoint_steps": 2048,
        "training_fsm_worker_waiting_checkpoints": 1,
    }
    assert {name: _value(worker_registry, name) for name in wanted} == wanted
    age_s = _value(worker_registry, "training_fsm_worker_lease_age_seconds")
    assert age_s is not None
    assert age_s >= 1.0  # 30 s, less 29 s that are left
    labels = {"run_id": "run-1", "state": "TRAINING", "model": "eurusd-ppo", "worker": "worker-1"}
    assert _value(worker_registry, "training_fsm_worker_run_info", **labels) == 1
    assert _value(worker_registry, "training_fsm_worker_ended_runs_total", state="FAILED") == 2


def test_idle_worker_shows_no_run() -> None:
    """Without work there is no run, no lease and no progress, and the worker is still to be seen."""
    lease = CachedRead("postgres", lambda: LeaseReading(None, None))
    registry = registry_of(WorkerCollector(lease, Pulses(720), WorkerStatus("worker-1"), lease_s=30))
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert _value(registry, "training_fsm_worker_busy") == 0
    assert _value(registry, "training_fsm_worker_child_up") == 0
    assert not names & {"training_fsm_worker_run_info", "training_fsm_worker_lease_age_seconds"}


def test_lease_of_an_earlier_claim_is_not_shown(worker_registry: CollectorRegistry, work) -> None:
    """A reading that is kept from before says nothing of this lease."""
    work.lease = Lease("run-1", 2, "worker-1")
    assert _value(worker_registry, "training_fsm_worker_lease_age_seconds") is None


def test_child_that_ended_is_down() -> None:
    """Only a process that is there counts; before the first one is ready there is none."""
    status = WorkerStatus("worker-1")
    assert not status.child_alive
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        status.child_pid = child.pid
        assert status.child_alive
        child.kill()
        child.wait(10)
    assert not status.child_alive


def test_scrape_without_services_still_answers() -> None:
    """With Postgres and Kafka away the loops and the readings' own state are exported, and no number of the past."""

    def away() -> LogReading:
        raise ConnectionError("nobody there")

    collector = OrchestratorCollector(
        CachedRead("postgres", away), CachedRead("kafka", threading.Event().wait, patience_s=0.05), Pulses(120), bool
    )
    registry = registry_of(collector)
    assert _value(registry, "training_fsm_service_reached", service="postgres") == 0
    assert _value(registry, "training_fsm_service_reached", service="kafka") == 0
    assert _value(registry, "training_fsm_relay_leads") == 0
    assert _value(registry, "training_fsm_due_runs") is None
    assert _value(registry, "training_fsm_reading_age_seconds", service="postgres") is None


@pytest.mark.parametrize("role", ["orchestrator", "worker"])
def test_build_is_told(request: pytest.FixtureRequest, role: str) -> None:
    """Which version runs in which role."""
    registry: CollectorRegistry = request.getfixturevalue(f"{role}_registry")
    (build,) = (family for family in registry.collect() if family.name == "training_fsm_build")
    assert build.samples[0].labels["role"] == role
    assert build.samples[0].labels["version"]


def test_text_is_prometheus(orchestrator_registry: CollectorRegistry) -> None:
    """What goes over the wire parses, and every family says what it is."""
    families = list(text_string_to_metric_families(generate_latest(orchestrator_registry).decode()))
    assert len(families) > 15
    assert [family.name for family in families if not family.documentation] == []
