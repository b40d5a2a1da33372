import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import uvicorn
from confluent_kafka import Consumer, TopicPartition

from training_fsm.client.ingest_client import IngestClient
from training_fsm.domain.errors import IngestRefused, OutsideUnavailable
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.request import TrainingRequest
from training_fsm.local.broker import Broker
from training_fsm.local.standin.ingest import Publisher, create_app
from training_fsm.local.standin.kafka import create_missing_topics, new_producer
from training_fsm.local.standin.wire import REQUESTED_TOPIC
from training_fsm.ports import Ingest

REQUEST_ID = "0b0f6c1e-1111-5222-8333-444455556666"
ACCEPTED = json.dumps({"request_id": REQUEST_ID, "status": "accepted"})
REQUEST = TrainingRequest.model_validate(
    {
        "mode": "from_scratch",
        "model": "eurusd-ppo",
        "symbol": "eurusd",
        "base_timeframe": "1h",
        "timeframe": "4h",
        "range": {"start": "2017-01-01T02:00:00+02:00", "end": "2018-01-01T00:00:00"},
        "features": {
            "semver": "1.0.0",
            "feature_definitions": [
                {
                    "name": "rsi",
                    "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 14}],
                    "parsed_parameter_sets": {"left": "over"},
                },
                {"name": "close_price"},
            ],
        },
        "data": {"columns": {"close": "close_price_value"}},
    }
)
FEATURE_CONFIG: FeatureConfigVersionInfo = REQUEST.features.versioned(datetime(2026, 11, 24, 12, tzinfo=UTC))


@dataclass
class Script:
    """What the server answers next, and what it was asked."""

    status: int = 202
    body: str = ACCEPTED
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    wait: threading.Event | None = None
    promised_bytes: int | None = None
    asked: list[tuple[str, Message, bytes]] = field(default_factory=list)


@pytest.fixture
def script() -> Script:
    """The answer that a test arranges."""
    return Script()


@pytest.fixture
def base_url(script: Script) -> Iterator[str]:
    """A real HTTP server on the loopback that answers by the script."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            script.asked.append((self.path, self.headers, body))
            if script.wait is not None:
                script.wait.wait(20)
            answer = script.body.encode()
            self.send_response(script.status)
            for name, value in script.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(script.promised_bytes or len(answer)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # a client may hang up first
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(base_url: str) -> Iterator[IngestClient]:
    """The client under test."""
    with IngestClient(base_url, connect_timeout_s=2, read_timeout_s=5) as ingest:
        yield ingest


def ask(ingest: Ingest) -> tuple[int, str]:
    """Ask the one question of these tests."""
    answer = ingest.request_features(REQUEST_ID, REQUEST.range, REQUEST, FEATURE_CONFIG)
    return answer.status, answer.words


@pytest.mark.parametrize("status", [200, 202])
def test_accepts_what_is_published_and_what_is_served(client: IngestClient, script: Script, status: int) -> None:
    """Both answers of the family's two ingests are an acceptance."""
    script.status = status
    assert ask(client) == (status, ACCEPTED)


def test_sends_the_contracts_body(client: IngestClient, script: Script) -> None:
    """Every field of the contract is on the wire, times with Z, the symbol upper-cased, our own request id."""
    ask(client)
    [(path, headers, body)] = script.asked
    assert path == "/api/v1/preprocessing/requests"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "symbol": "EURUSD",
        "base_timeframe": "1h",
        "target_timeframes": ["4h"],
        "feature_config_version_info": {
            "semver": "1.0.0",
            "hash": FEATURE_CONFIG.hash,
            "created_at": "2026-11-24T12:00:00Z",
            "feature_definitions": [
                {
                    "name": "rsi",
                    "enabled": True,
                    "derivatives": [],
                    "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 14}],
                    "parsed_parameter_sets": {},
                },
                {
                    "name": "close_price",
                    "enabled": True,
                    "derivatives": [],
                    "raw_parameter_sets": [],
                    "parsed_parameter_sets": {},
                },
            ],
            "description": None,
        },
        "start_time": "2017-01-01T00:00:00Z",
        "end_time": "2018-01-01T00:00:00Z",
        "request_id": REQUEST_ID,
        "force_recompute": False,
        "incremental_mode": True,
        "processing_context": "training",
        "skip_existing_features": True,
        "materialize_online": False,
        "batch_size": None,
        "parallel_processing": True,
    }


def test_path_is_a_setting(base_url: str, script: Script) -> None:
    """The published path works as well as the served one."""
    with IngestClient(f"{base_url}/", "preprocessing-requests") as ingest:
        ask(ingest)
    assert script.asked[0][0] == "/api/v1/preprocessing-requests"


def test_refusal_carries_ingests_words(client: IngestClient, script: Script) -> None:
    """A 400 is a refusal, with the words of its JSON error."""
    script.status = 400
    script.body = json.dumps({"error": "target_timeframes: must be higher than base", "service": "drl-trading-ingest"})
    with pytest.raises(IngestRefused) as refused:
        ask(client)
    assert (refused.value.status, refused.value.words) == (400, "target_timeframes: must be higher than base")


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        (
            "text/html",
            "<!doctype html><style>p {color: red}</style><h1>Method Not\nAllowed</h1><p>POST &amp; GET</p>",
            "Method Not Allowed POST & GET",
        ),
        ("text/plain", "n" * 2000, "n" * 500),
        ("application/json", '{"detail": "elsewhere"}', '{"detail": "elsewhere"}'),
        ("text/plain", "", "no words"),
    ],
    ids=["html", "long", "other json", "empty"],
)
def test_refusal_without_the_contracts_body_is_readable(
    client: IngestClient, script: Script, content_type: str, body: str, words: str
) -> None:
    """HTML is reduced to its text, and no answer is carried on longer than 500 characters."""
    script.status, script.body, script.headers = 405, body, {"Content-Type": content_type}
    with pytest.raises(IngestRefused) as refused:
        ask(client)
    assert refused.value.words == words


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_asking_again_may_help(client: IngestClient, script: Script, status: int) -> None:
    """Faults of the server's own, and answers that ask for patience, are no refusal; the words come along."""
    script.status, script.body = status, '{"error": "database is away"}'
    with pytest.raises(OutsideUnavailable, match=f"ingest: .*{status}: database is away"):
        ask(client)
    assert len(script.asked) == 1, "the orchestrator's timer asks again, not the client"


def test_redirect_is_refused_and_names_where_to(client: IngestClient, script: Script) -> None:
    """A redirect is not followed: it would turn the POST into a GET, or send it who knows where."""
    script.status, script.headers = 302, {"Location": "http://elsewhere.example/login"}
    with pytest.raises(IngestRefused, match=r"302: .* redirects to http://elsewhere\.example/login"):
        ask(client)
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        "<html>Please log in</html>",
        "",
        '{"status": "accepted"}',
        json.dumps({"request_id": REQUEST_ID, "status": "queued"}),
        json.dumps({"request_id": "another", "status": "accepted"}),
    ],
    ids=["html", "empty", "no id", "another status", "another id"],
)
def test_a_2xx_that_is_not_ingests_answer_is_no_acceptance(client: IngestClient, script: Script, body: str) -> None:
    """A proxy's login page must not be taken for an acceptance; the error says what was expected."""
    script.status, script.body = 200, body
    with pytest.raises(OutsideUnavailable, match=f'answered 200, expected .*"{REQUEST_ID}", "status": "accepted"'):
        ask(client)


def test_endless_body_is_read_to_a_bound(client: IngestClient, script: Script) -> None:
    """An answer of many megabytes is cut off, not kept in memory."""
    script.body, script.promised_bytes = "x" * 1_000_000, 10_000_000_000
    with pytest.raises(OutsideUnavailable, match="answered 202"):
        ask(client)


def test_no_answer_in_time_is_unavailable(base_url: str, script: Script) -> None:
    """A server that takes the request and says nothing runs into the read time-out."""
    script.wait = threading.Event()
    with (
        IngestClient(base_url, read_timeout_s=0.2) as ingest,
        pytest.raises(OutsideUnavailable, match=r"preprocessing/requests: ReadTimeout"),
    ):
        ask(ingest)
    script.wait.set()


def test_connection_cut_in_the_answer_is_unavailable(client: IngestClient, script: Script) -> None:
    """A body shorter than promised is not read as an answer."""
    script.promised_bytes, script.headers = len(ACCEPTED) + 1, {"Connection": "close"}
    with pytest.raises(OutsideUnavailable, match="RemoteProtocolError"):
        ask(client)


def test_nobody_listening_is_unavailable() -> None:
    """No connection is unavailable, and the message shows no password of the address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}/api/v1"
        with IngestClient(url) as ingest, pytest.raises(OutsideUnavailable, match="ConnectError") as unavailable:
            ask(ingest)
    assert "secret" not in str(unavailable.value)


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://localhost/api", "http:///api"])
def test_address_that_is_no_http_url_is_refused_at_once(address: str) -> None:
    """A mistake in the settings shows when the client is made, not when a run needs it."""
    with pytest.raises(ValueError, match="expected http"):
        IngestClient(address)


@pytest.fixture
def standin_url(broker: Broker) -> Iterator[str]:
    """The stand-in for ingest, on a real broker."""
    create_missing_topics(broker.bootstrap_servers, [REQUESTED_TOPIC])
    app = create_app(Publisher(new_producer(broker.bootstrap_servers)))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the stand-in did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        server.should_exit = True
        thread.join()


def test_standin_takes_our_request_and_passes_it_on(standin_url: str, broker: Broker) -> None:
    """What we send passes ingest's own checks on both of its paths, and reaches preprocess with our id."""
    for path, status in (("preprocessing/requests", 202), ("preprocessing-requests", 200)):
        with IngestClient(standin_url, path) as ingest:
            assert ask(ingest) == (status, json.dumps(json.loads(ACCEPTED), separators=(",", ":")))
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": REQUEST_ID})
    consumer.assign([TopicPartition(REQUESTED_TOPIC, 0, 0)])
    found = []
    while len(found) < 2:
        message = consumer.poll(20)
        assert message is not None, "nothing came"
        value = json.loads(message.value())
        if value["request_id"] == REQUEST_ID:
            found.append((message.key(), value["symbol"]))
    consumer.close()
    assert found == [(b"EURUSD", "EURUSD")] * 2


def test_standins_refusal_is_ours(standin_url: str) -> None:
    """A request that ingest's checks refuse comes back as a refusal in its words."""
    same = REQUEST.model_copy(update={"base_timeframe": REQUEST.timeframe})
    with IngestClient(standin_url) as ingest, pytest.raises(IngestRefused, match="must be higher than base timeframe"):
        ingest.request_features(REQUEST_ID, same.range, same, FEATURE_CONFIG)
