"""/healthz, /readyz and /metrics on a thread of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from training_fsm.domain.errors import TrainingFsmError
from training_fsm.observability.health import Checks, health
from training_fsm.settings import Settings

log = structlog.get_logger()

REQUEST_S_MAX = 10.0


class PortUnusable(TrainingFsmError):
    """The port for health and metrics cannot be listened on."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a role shows."""

    role: str
    live: Checks
    ready: Checks
    registry: CollectorRegistry


@contextmanager
def observed(settings: Settings, observation: Observation) -> Iterator[int | None]:
    """Serve for as long as the block lasts, and give the port; nothing is served where `http_port` is not set.

    Raises PortUnusable.
    """
    if settings.http_port is None:
        yield None
        return
    try:
        server = ThreadingHTTPServer((settings.http_host, settings.http_port), _handler(observation))
    except OSError as error:
        where = f"{settings.http_host}:{settings.http_port}"
        raise PortUnusable(f"setting http_port: {where} cannot be listened on: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True)
    thread.start()
    log.info("health and metrics", host=settings.http_host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(observation: Observation) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S_MAX  # a client that sends nothing holds no thread for ever

        def do_GET(self) -> None:
            """Answer one of the three paths."""
            match self.path.partition("?")[0]:
                case "/healthz":
                    self._tell(observation.live)
                case "/readyz":
                    self._tell(observation.ready)
                case "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, content_type, encode(observation.registry))
                case _:
                    self._answer(404, "text/plain; charset=utf-8", b"/healthz, /readyz, /metrics\n")

        def _tell(self, checks: Checks) -> None:
            found = health(observation.role, checks())
            body = found.model_dump_json(indent=2).encode() + b"\n"
            self._answer(200 if found.ok else 503, "application/json", body)

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A line for every scrape would drown the others."""

    return Handler
