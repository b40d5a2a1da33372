"""The orchestrator's object graph: intake, asker, topic watch and relay, each on a thread of one process."""

import random
import threading
from collections.abc import Callable, Mapping

import structlog

from training_fsm.client.ingest_client import IngestClient
from training_fsm.housekeeping_timer import HousekeepingTimer
from training_fsm.messaging.asker import Asker
from training_fsm.messaging.intake import Intake
from training_fsm.messaging.kafka import make_admin, make_consumer, make_producer
from training_fsm.messaging.preprocessing_listener import PREPROCESS_TOPICS
from training_fsm.messaging.relay import Relay
from training_fsm.messaging.topic_watch import TopicWatch
from training_fsm.messaging.topics import Topics, create_missing
from training_fsm.observability.orchestrator import ObservedOutbox, observe_orchestrator
from training_fsm.observability.pulse import Pulses
from training_fsm.observability.server import observed
from training_fsm.service.training_orchestration_service import TrainingOrchestrationService
from training_fsm.settings import Settings
from training_fsm.startup import once_all_is_up, require_schema
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog

log = structlog.get_logger()


def run_orchestrator(settings: Settings, stop: threading.Event) -> int:
    """Serve until told to stop, or until a thread dies of what nobody foresaw; then exit 1, to be started again.

    Waits for Postgres and Kafka where they are not up yet. Raises SchemaBehind, TopicsRefused, PortUnusable.
    """
    engine = make_engine(settings.database_url, application_name="training-fsm-orchestrator")
    event_log, outbox = PostgresEventLog(engine), ObservedOutbox(engine)
    topics, admin = Topics.with_prefix(settings.topic_prefix), make_admin(settings)
    ingest = IngestClient(settings.ingest_url, settings.ingest_path, read_timeout_s=settings.ingest_timeout_s)
    service = TrainingOrchestrationService(event_log, settings.policy, ingest, random.random)

    def create_topics() -> None:
        create_missing(admin, topics.all, settings.topic_partitions, settings.topic_replication)

    relay_group = f"{settings.topic_prefix}training-fsm-relay"
    relay = Relay(
        outbox,
        topics,
        lambda: make_producer(settings, relay_group),
        lambda: make_consumer(settings, relay_group),
        admin,
        create_topics,
    )
    asker = Asker(service, event_log, hold_s=settings.ingest_timeout_s * 2)
    watch = TopicWatch(admin, outbox, (topics.requested, *PREPROCESS_TOPICS))

    def prepare() -> None:
        require_schema(engine)
        create_topics()
        watch.look()

    def committed() -> None:
        asker.wake.set()
        relay.wake.set()

    group = f"{settings.topic_prefix}training-fsm-orchestrator"
    intake = Intake(make_consumer(settings, group), topics.requested, service.handle, watch, committed)
    loops = {"intake": intake.run, "asker": asker.run, "watch": watch.run, "relay": relay.run}
    if settings.housekeeping_every_h is not None:
        loops["housekeeping"] = HousekeepingTimer(settings.housekeeping_every_h, settings.home).run
    pulses = Pulses(max(settings.health_silence_s, settings.ingest_timeout_s * 4))
    try:
        with observed(settings, observe_orchestrator(settings, engine, admin, group, outbox, pulses)):
            with pulses.watched("start", stop) as watched:
                if not once_all_is_up(prepare, watched):
                    return 0
            return _serve(loops, stop, pulses)
    finally:
        ingest.close()
        engine.dispose()


def _serve(loops: Mapping[str, Callable[[threading.Event], None]], stop: threading.Event, pulses: Pulses) -> int:
    died: list[str] = []

    def guarded(name: str, loop: Callable[[threading.Event], None]) -> None:
        try:
            with pulses.watched(name, stop) as watched:
                loop(watched)
        except Exception:
            log.exception("thread died", thread=name)
            died.append(name)
        finally:
            stop.set()

    threads = [threading.Thread(target=guarded, args=item, name=item[0]) for item in loops.items()]
    for thread in threads:
        thread.start()
    log.info("orchestrator serves")
    for thread in threads:
        thread.join()
    return 1 if died else 0
