"""Notices topics that were deleted and made anew, also while nobody of us was running."""

import threading
from collections.abc import Mapping
from typing import Protocol

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.messaging.topics import topic_ids

log = structlog.get_logger()

INTERVAL_S = 10.0


class TopicMemory(Protocol):
    """Where the ids of topics are remembered."""

    def remember_topics(self, ids: Mapping[str, str]) -> frozenset[str]:
        """Store the ids and return the topics whose id was another one."""
        ...


class TopicWatch:
    """Compares topic ids every ten seconds, and once before the first assignment."""

    def __init__(self, admin: AdminClient, memory: TopicMemory, topics: tuple[str, ...]) -> None:
        self._admin = admin
        self._memory = memory
        self._topics = topics
        self._lock = threading.Lock()
        self._since_start: frozenset[str] = frozenset()
        self._changed: set[str] = set()
        self._seen: dict[str, str] = {}

    def look(self) -> None:
        """Compare once. Raises KafkaException, OutsideUnavailable."""
        ids = topic_ids(self._admin, self._topics)
        # Another process may have been the one to tell the memory: what this one saw counts as well.
        changed = self._memory.remember_topics(ids) | {
            topic for topic in ids if self._seen.get(topic, ids[topic]) != ids[topic]
        }
        self._seen |= ids
        with self._lock:
            self._changed |= changed
            self._since_start |= changed

    def made_anew(self, topic: str) -> bool:
        """Whether the topic became another one, for whoever is assigned its partitions now."""
        with self._lock:
            self._changed.discard(topic)
            return topic in self._since_start

    def take_changed(self) -> frozenset[str]:
        """Topics that changed since the last call."""
        with self._lock:
            changed, self._changed = frozenset(self._changed), set()
        return changed

    def run(self, stop: threading.Event) -> None:
        """Compare until told to stop."""
        while not stop.wait(INTERVAL_S):
            try:
                self.look()
            except (KafkaException, OutsideUnavailable) as error:
                log.warning("topic ids not compared", error=str(error))
