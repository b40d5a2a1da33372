"""Stand-in for drl-trading-ingest: takes a preprocessing request over HTTP and publishes it for preprocess.

Answers as the real one does, its oddities included: 400 for a wrong field, 500 for a body that is no JSON or is not
declared to be, HTML for a wrong path or method.
"""

import argparse
import json
import logging
import signal
import sys
from dataclasses import dataclass, field
from http import HTTPStatus

import uvicorn
from confluent_kafka import Producer
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from training_fsm.local.standin.kafka import Outgoing, create_missing_topics, deliver, new_producer
from training_fsm.local.standin.wire import REQUESTED_TOPIC, IngestRequest

SERVICE = "drl-trading-ingest"
SERVED_PATH = "/api/v1/preprocessing/requests"
PUBLISHED_PATH = "/api/v1/preprocessing-requests"
_log = logging.getLogger("standin.ingest")


@dataclass(frozen=True)
class Publisher:
    """Puts accepted requests on `requested.preprocess-data`, key = symbol, without headers."""

    producer: Producer = field(repr=False)

    def publish(self, request: IngestRequest) -> None:
        """Send one request and wait for its delivery; raises KafkaException."""
        deliver(self.producer, Outgoing(REQUESTED_TOPIC, request.symbol, request.model_dump_json().encode()))


def _refusal(status: HTTPStatus, words: str) -> JSONResponse:
    _log.info("refused status=%d error=%s", status, json.dumps(words))
    return JSONResponse({"error": words, "service": SERVICE}, status)


async def _json_body(request: Request) -> str:
    """Read the body, as text again; raises ValueError when it is not JSON or its content type does not say so."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not (
        content_type.startswith("application/") and content_type.endswith("+json")
    ):
        raise ValueError("415 Unsupported Media Type: the request's Content-Type was not 'application/json'")
    return json.dumps(json.loads(await request.body()))


async def _html(request: Request, error: Exception) -> Response:
    status = HTTPStatus(error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR)
    _log.info("refused status=%d method=%s path=%s", status, request.method, request.url.path)
    title = f"{status.value} {status.phrase}"
    return HTMLResponse(
        f"<!doctype html>\n<html lang=en>\n<title>{title}</title>\n"
        f"<h1>{status.phrase}</h1>\n<p>{status.description}</p>\n",
        status,
    )


def create_app(publisher: Publisher) -> FastAPI:
    """Build the web application around a publisher."""
    app = FastAPI(openapi_url=None, exception_handlers={HTTPException: _html})

    async def accept(request: Request, status: HTTPStatus) -> Response:
        try:
            # Strictly: who sends a number for a boolean is told so here, not by the real one.
            asked = IngestRequest.model_validate_json(await _json_body(request), strict=True)
            await run_in_threadpool(publisher.publish, asked)
        except ValidationError as error:
            return _refusal(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # noqa: BLE001 - whatever else went wrong is the real one's 500
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        _log.info("accepted request_id=%s symbol=%s", asked.request_id, asked.symbol)
        return JSONResponse({"request_id": asked.request_id, "status": "accepted"}, status)

    @app.post(SERVED_PATH)
    async def served(request: Request) -> Response:
        return await accept(request, HTTPStatus.ACCEPTED)

    @app.post(PUBLISHED_PATH)
    async def published(request: Request) -> Response:
        return await accept(request, HTTPStatus.OK)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "healthy", "service": SERVICE})

    return app


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m training_fsm.local.standin.ingest", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--bootstrap-servers", required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # uvicorn stops by itself, then raises the signal once more: taken here, the exit stays a clean one.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(0))
    create_missing_topics(options.bootstrap_servers, [REQUESTED_TOPIC])
    app = create_app(Publisher(new_producer(options.bootstrap_servers)))
    _log.info("listening host=%s port=%d", options.host, options.port)
    try:
        uvicorn.run(app, host=options.host, port=options.port, log_config=None, access_log=False)
    finally:
        _log.info("stopped")


if __name__ == "__main__":
    main()
