"""The three paths over real HTTP, and what makes a role live and ready."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from training_fsm.local.process import free_port
from training_fsm.observability.cached_read import Reading
from training_fsm.observability.health import REACHED_S_MAX, Check, loop_checks, reached_check
from training_fsm.observability.kafka_health import KafkaReading
from training_fsm.observability.orchestrator import topics_check
from training_fsm.observability.pulse import Pulses
from training_fsm.observability.server import Observation, PortUnusable, observed
from training_fsm.settings import Settings


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def _served(
    live: Callable[[], Mapping[str, Check]] = dict,
    ready: Callable[[], Mapping[str, Check]] = dict,
    registry: CollectorRegistry | None = None,
) -> Iterator[int]:
    observation = Observation("worker", live, ready, registry or CollectorRegistry())
    with observed(Settings(http_port=0), observation) as port:
        assert port
        yield port


def test_loop_that_turns_is_live_and_one_that_hangs_is_not() -> None:
    """A loop that no longer asks whether to stop turns /healthz to 503, and one that goes on turns it back."""
    pulses, stop, go_on, hangs = Pulses(0.3), threading.Event(), threading.Event(), threading.Event()

    def loop(stop: threading.Event) -> None:
        while not stop.wait(0.01):
            if not go_on.is_set():
                hangs.set()
                go_on.wait()

    go_on.set()
    with pulses.watched("main", stop) as watched, _served(lambda: loop_checks(pulses)) as port:
        thread = threading.Thread(target=loop, args=(watched,))
        thread.start()
        status, body = _get(port, "/healthz")
        assert (status, json.loads(body)["role"], json.loads(body)["ok"]) == (200, "worker", True)
        go_on.clear()
        hangs.wait()
        while (answer := _get(port, "/healthz"))[0] == 200:
            pass
        told = json.loads(answer[1])
        assert (answer[0], told["ok"], told["checks"]["main"]["ok"]) == (503, False, False)
        go_on.set()
        while _get(port, "/healthz")[0] == 503:
            pass
        stop.set()
        thread.join()


def test_stop_is_passed_on() -> None:
    """Whoever asks the watched event is told what the other one knows, and can set it."""
    stop = threading.Event()
    with Pulses(1).watched("main", stop) as watched:
        assert not watched.is_set()
        watched.set()
        assert stop.is_set()
        assert watched.wait(10)
        watched.clear()
        assert not stop.is_set()


def test_loop_that_ended_is_no_longer_watched() -> None:
    """A phase that is over cannot make a role look hung."""
    pulses = Pulses(120)
    with pulses.watched("start", threading.Event()):
        assert loop_checks(pulses).keys() == {"start"}
    assert loop_checks(pulses) == {}


def test_ready_tells_what_is_away() -> None:
    """One required check that fails is 503, with its words; one that is not required is only told."""
    away = Check(ok=False, says="connection refused")
    with _served(ready=lambda: {"postgres": away}) as port:
        status, body = _get(port, "/readyz")
    assert status == 503
    assert json.loads(body) == {
        "role": "worker",
        "ok": False,
        "checks": {"postgres": {"ok": False, "required": True, "says": "connection refused"}},
    }
    with _served(ready=lambda: {"topics": away.model_copy(update={"required": False})}) as port:
        assert _get(port, "/readyz")[0] == 200


def test_short_outage_makes_nobody_unready() -> None:
    """A service reached within a while is one that is there; it is said that it is not reached now."""
    assert reached_check(Reading(1, 0.0, None)).ok
    assert reached_check(Reading(1, REACHED_S_MAX - 1, "timed out")).ok
    assert "timed out" in reached_check(Reading(1, REACHED_S_MAX - 1, "timed out")).says
    assert not reached_check(Reading(1, REACHED_S_MAX + 1, "timed out")).ok
    assert not reached_check(Reading(None, float("inf"), "timed out")).ok


def test_missing_topic_is_told_and_forgiven(kafka_reading: KafkaReading) -> None:
    """A neighbour's topic is the neighbour's to create."""
    check = topics_check(Reading(kafka_reading, 0.0, None))
    assert (check.ok, check.required, check.says) == (False, False, "missing: error.preprocess-data")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain; version="), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_metrics_speak_the_format_asked_for(
    orchestrator_registry: CollectorRegistry, accept: str, content_type: str
) -> None:
    """Prometheus asks for OpenMetrics, people get text."""
    with _served(registry=orchestrator_registry) as port:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith(content_type)
            assert b'training_fsm_runs{state="TRAINING"} 4.0' in answer.read()


def test_other_paths_are_not_there() -> None:
    """A mistyped path says which there are."""
    with _served() as port:
        assert _get(port, "/health") == (404, "/healthz, /readyz, /metrics\n")
        assert _get(port, "/healthz?verbose")[0] == 200


def test_nothing_is_served_unless_wanted() -> None:
    """Without the setting no port is opened."""
    with observed(Settings(http_port=None), Observation("worker", dict, dict, CollectorRegistry())) as port:
        assert port is None


def test_taken_port_is_a_clear_error() -> None:
    """It names the setting and the address."""
    taken = free_port()
    observation = Observation("worker", dict, dict, CollectorRegistry())
    with (
        socket.create_server(("127.0.0.1", taken)),
        pytest.raises(PortUnusable, match=f"http_port: 127.0.0.1:{taken}"),
        observed(Settings(http_port=taken), observation),
    ):
        pytest.fail("it serves on a port that is taken")


def test_port_is_free_again() -> None:
    """A role that is started again at once finds its port."""
    port = free_port()
    for _ in range(2):
        with observed(Settings(http_port=port), Observation("worker", dict, dict, CollectorRegistry())) as served:
            assert served == port
            assert _get(port, "/healthz")[0] == 200
