"""The stand-in of ingest, as a real process on a real broker, against ingest's OpenAPI document."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from pydantic import JsonValue, TypeAdapter
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error

from training_fsm.local.broker import Broker
from training_fsm.local.process import accepts_connections, free_port, start_process, wait_until

OPENAPI = schemathesis.openapi.from_path(Path(__file__).parents[1] / "client" / "ingest_openapi.yaml")
PATHS = ["/preprocessing/requests", "/preprocessing-requests"]

few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@pytest.fixture(scope="module")
def base_url(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The running stand-in."""
    port = free_port()
    command = [sys.executable, "-m", "training_fsm.local.standin.ingest", "--port", str(port)]
    log = tmp_path_factory.mktemp("ingest") / "ingest.log"
    with start_process("ingest", [*command, "--bootstrap-servers", broker.bootstrap_servers], log=log) as ingest:
        wait_until(lambda: accepts_connections(port), ingest, 60, "ingest")
        yield f"http://127.0.0.1:{port}/api/v1"


@pytest.mark.parametrize("path", PATHS)
def test_what_is_of_the_contract_is_accepted(base_url: str, path: str) -> None:
    """With the answer of the contract: its status, its content type, its fields."""

    @few
    @given(OPENAPI[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def holds(case: Case) -> None:
        _put_in_order(case.body)
        response = case.call_and_validate(base_url=base_url)
        assert response.status_code in (200, 202)
        assert response.json()["request_id"] == (case.body.get("request_id") or response.json()["request_id"])

    holds()


def _put_in_order(body: dict[str, JsonValue]) -> None:
    """OpenAPI cannot say that the end lies after the start, nor that in UTC too both are within the years 1 to 9999."""
    (earlier, start), (later, end) = sorted((_utc(body[name]), body[name]) for name in ("start_time", "end_time"))
    assume(earlier < later)
    body["start_time"], body["end_time"] = start, end


def _utc(text: JsonValue) -> datetime:
    time = TypeAdapter(datetime).validate_python(text)
    assume(1 < time.year < 9999)
    return time.astimezone(UTC)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_of_the_contract_is_refused(base_url: str, path: str) -> None:
    """With 400 and words, but for a body that is no JSON: that is the real one's 500."""

    @few
    @given(OPENAPI[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def holds(case: Case) -> None:
        response = case.call(base_url=base_url)
        assert response.status_code == (400 if _is_json(response.request.body) else 500)
        case.validate_response(response, excluded_checks=[not_a_server_error])

    holds()


def _is_json(body: bytes | str | None) -> bool:
    try:
        json.loads(body or b"")
    except ValueError:
        return False
    return True


def _body(**changes: JsonValue) -> dict[str, JsonValue]:
    definition: JsonValue = {"name": "rsi", "enabled": True, "derivatives": []}
    version: JsonValue = {
        "semver": "1.0.0",
        "hash": "0",
        "created_at": "2026-01-01T00:00:00Z",
        "feature_definitions": [definition],
    }
    return {
        "symbol": "EURUSD",
        "base_timeframe": "1h",
        "target_timeframes": ["4h"],
        "feature_config_version_info": version,
        "start_time": "2017-01-01T00:00:00Z",
        "end_time": "2017-01-02T00:00:00Z",
    } | changes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_time", "0001-01-01T00:00:00+01:00"),  # before the first year, in UTC
        ("end_time", "9999-12-31T23:59:59-01:00"),
        ("force_recompute", 0),
        ("parallel_processing", "true"),
        ("batch_size", "8"),
    ],
)
def test_what_was_found_is_refused(base_url: str, field: str, value: JsonValue) -> None:
    """Values that were a fault within, or were taken for what they are not."""
    response = httpx.post(f"{base_url}/preprocessing/requests", json=_body(**{field: value}))
    assert response.status_code == 400
    assert field in response.json()["error"]
