"""Metric families that both roles export."""

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from training_fsm.observability.cached_read import Reading
from training_fsm.observability.pulse import Pulses


def gauge(name: str, help_: str, value: float) -> Metric:
    """One number."""
    return GaugeMetricFamily(f"training_fsm_{name}", help_, value=value)


def gauges(name: str, help_: str, label: str, values: Mapping[str, float]) -> Metric:
    """One number for each value of a label."""
    family = GaugeMetricFamily(f"training_fsm_{name}", help_, labels=[label])
    for named, value in values.items():
        family.add_metric([named], value)
    return family


def common(role: str, pulses: Pulses, readings: Mapping[str, Reading[object]]) -> Iterator[Metric]:
    """The build, the loops, and how old what the scrape shows is."""
    build = {"role": role, "version": version("training-fsm"), "python": platform.python_version()}
    yield InfoMetricFamily("training_fsm_build", "What runs here.", value=build)
    yield gauges("loop_silence_seconds", "Since a loop last turned.", "loop", pulses.silences_s())
    reached = {name: float(reading.error is None) for name, reading in readings.items()}
    yield gauges("service_reached", "1 where the newest look at a service was answered.", "service", reached)
    ages = {name: reading.age_s for name, reading in readings.items() if reading.value is not None}
    yield gauges("reading_age_seconds", "Since the numbers shown here were read from a service.", "service", ages)


def registry_of(collector: Collector) -> CollectorRegistry:
    """A registry of this collector and of the process's own memory, time and files."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry
