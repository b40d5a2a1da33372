"""Health and metrics of an orchestrator. What it reads of Postgres and Kafka is true of the whole installation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa
from confluent_kafka.admin import AdminClient
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from training_fsm.domain.states import State
from training_fsm.messaging.preprocessing_listener import PREPROCESS_TOPICS
from training_fsm.messaging.topics import Topics
from training_fsm.observability.cached_read import CachedRead, Reading
from training_fsm.observability.families import common, gauge, gauges, registry_of
from training_fsm.observability.health import Check, loop_checks, reached_check
from training_fsm.observability.kafka_health import KafkaReading, read_kafka
from training_fsm.observability.pulse import Pulses
from training_fsm.observability.server import Observation
from training_fsm.settings import Settings
from training_fsm.store.health_reads import LogReading, PostgresHealth
from training_fsm.store.outbox import PostgresOutbox

ROLE = "orchestrator"


class ObservedOutbox(PostgresOutbox):
    """An outbox that tells whether this process leads the relay."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        self.leads = False

    @contextmanager
    def leadership(self) -> Iterator[bool]:
        """As the outbox's."""
        with super().leadership() as leads:
            self.leads = leads
            try:
                yield leads
            finally:
                self.leads = False


class OrchestratorCollector(Collector):
    """Reads when it is scraped."""

    def __init__(
        self,
        log: CachedRead[LogReading],
        kafka: CachedRead[KafkaReading],
        pulses: Pulses,
        leads: Callable[[], bool],
    ) -> None:
        self._log = log
        self._kafka = kafka
        self._pulses = pulses
        self._leads = leads

    def collect(self) -> Iterator[Metric]:
        """Families of what was read; without a first reading, those that need none."""
        log, kafka = self._log.get(), self._kafka.get()
        yield from common(ROLE, self._pulses, {"postgres": log, "kafka": kafka})
        yield gauge("relay_leads", "1 where this process publishes the log.", self._leads())
        if log.value is not None:
            yield from _of_log(log.value)
        if kafka.value is not None:
            yield from _of_kafka(kafka.value)


def _of_log(log: LogReading) -> Iterator[Metric]:
    runs = {state.value: 0 for state in State if state is not State.NEW}
    runs |= {each.state.value: each.runs for each in log.states}
    due = sum(each.due for each in log.states)
    yield gauges("runs", "Runs by state.", "state", runs)
    yield gauge("due_runs", "Runs that a free worker would take now.", due)
    due_s = max((each.due_s for each in log.states), default=0)
    yield gauge("oldest_due_run_seconds", "How long the longest of them has waited; 0 without any.", due_s)
    backing_off = sum(each.backing_off for each in log.states)
    yield gauge("backing_off_runs", "Runs that pause after a failure before a worker may take them.", backing_off)
    yield gauge("leased_runs", "Runs under a live lease.", sum(each.held for each in log.states))
    silent = sum(each.silent for each in log.states)
    yield gauge("expired_leases", "Runs whose worker was not heard of for a whole lease.", silent)
    yield gauge("open_feature_requests", "Runs that wait for preprocess.", log.questions_open)
    age_s = log.oldest_question_s
    yield gauge("oldest_feature_request_seconds", "Age of the oldest question to ingest that is open.", age_s)
    yield CounterMetricFamily("training_fsm_events", "Highest position in the log.", value=log.last_position)
    yield gauge("relay_lag_events", "Positions of the log that are not on Kafka yet.", log.relay_behind)
    yield gauge("relay_lag_seconds", "Age of the oldest event that is not on Kafka yet.", log.relay_behind_s)
    commands = {"accepted": log.accepted, "refused": log.refused}
    yield gauges("last_hour_commands", "Commands of the last hour.", "outcome", commands)
    yield gauge("last_hour_dead_letters", "Messages of the last hour that could not be read.", log.dead_letters)


def _of_kafka(kafka: KafkaReading) -> Iterator[Metric]:
    present = dict.fromkeys(kafka.present, 1) | dict.fromkeys(kafka.missing, 0)
    yield gauges("topic_present", "0 where a topic that is read or written is not there.", "topic", present)
    yield gauges("intake_lag_messages", "Messages that are not handled yet, where measurable.", "topic", kafka.lag)


def observe_orchestrator(
    settings: Settings, engine: sa.Engine, admin: AdminClient, group: str, outbox: ObservedOutbox, pulses: Pulses
) -> Observation:
    """Everything that an orchestrator shows; `group` is the one that its intake reads with."""
    topics, postgres = Topics.with_prefix(settings.topic_prefix), PostgresHealth(engine)
    written = (topics.events, topics.completed, topics.error, topics.dead_letters)
    log = CachedRead("postgres", lambda: postgres.log_reading(topics.events))
    kafka = CachedRead("kafka", lambda: read_kafka(admin, group, (topics.requested, *PREPROCESS_TOPICS), written))

    def ready() -> Mapping[str, Check]:
        found = kafka.get()
        return {
            "postgres": reached_check(log.get()),
            "kafka": reached_check(found),
            "topics": topics_check(found),
        }

    return Observation(
        role=ROLE,
        live=lambda: loop_checks(pulses),
        ready=ready,
        registry=registry_of(OrchestratorCollector(log, kafka, pulses, lambda: outbox.leads)),
    )


def topics_check(reading: Reading[KafkaReading]) -> Check:
    """Which topics are missing. A neighbour's may come later, and what else we do goes on without it."""
    if reading.value is None:
        return Check(ok=False, required=False, says="not known yet")
    missing = reading.value.missing
    return Check(
        ok=not missing, required=False, says=f"missing: {', '.join(missing)}" if missing else "all of them are there"
    )
