"""Every request that our client sends is one of ingest's OpenAPI document."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from training_fsm.client.ingest_client import PATH, IngestClient
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import Timeframe, TimeRange

OPENAPI = yaml.safe_load((Path(__file__).parent / "ingest_openapi.yaml").read_text(encoding="utf-8"))
BODY = "#/components/schemas/FeaturePreprocessingRequest"
VALIDATOR = jsonschema_rs.Draft202012Validator(
    {"$ref": BODY, "components": OPENAPI["components"]}, validate_formats=True
)
MINUTE = timedelta(minutes=1)


class Recorder(BaseHTTPRequestHandler):
    """Accepts everything and keeps what came."""

    asked: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, self.headers["Content-Type"], body))
        path = self.path.removeprefix(OPENAPI["servers"][0]["url"])
        [accepted] = [int(status) for status in OPENAPI["paths"][path]["post"]["responses"] if status < "300"]
        answer = json.dumps({"request_id": json.loads(body)["request_id"], "status": "accepted"}).encode()
        self.send_response(accepted)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A real HTTP server on the loopback that records."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{OPENAPI['servers'][0]['url']}"
    server.shutdown()
    thread.join()
    server.server_close()


texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
parameter_sets = st.dictionaries(texts, values, max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> TrainingRequest:
    """A request from scratch: what ingest is told of it is drawn, the rest is as small as it may be."""
    by_length = sorted(Timeframe, key=lambda timeframe: timeframe.minutes)
    base, above = sorted(draw(st.sets(st.sampled_from(range(len(by_length))), min_size=2, max_size=2)))
    zones = st.timezones() | st.none()
    times = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=zones)  # noqa: DTZ001 - the zone is drawn
    start = draw(times)
    definitions: list[dict[str, JsonValue]] = draw(
        st.lists(
            st.fixed_dictionaries(
                {"name": st.text(st.characters(codec="utf-8"), min_size=1, max_size=100)},
                optional={
                    "enabled": st.booleans(),
                    "derivatives": st.lists(st.integers(-9, 9), max_size=3),
                    "raw_parameter_sets": st.lists(parameter_sets, max_size=3),
                    "parsed_parameter_sets": parameter_sets,
                },
            ),
            max_size=3,
        )
    )
    return TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "m",
            "symbol": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True)),
            "base_timeframe": by_length[base],
            "timeframe": by_length[above],
            "range": {"start": start, "end": start + draw(st.timedeltas(MINUTE, timedelta(days=9000)))},
            "features": {
                "semver": draw(st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True)),
                "feature_definitions": [*definitions, {"name": "close_price"}],
                "description": draw(st.none() | texts),
            },
            "data": {"columns": {"close": "close_price_value"}},
        }
    )


@st.composite
def questions(draw: st.DrawFn) -> tuple[TrainingRequest, TimeRange]:
    """A request, and the whole of its range or a part of it."""
    request = draw(requests())
    if draw(st.booleans()):
        return request, request.range
    length = request.range.end - request.range.start
    start = request.range.start + draw(st.timedeltas(timedelta(0), length / 2))
    end = request.range.end - draw(st.timedeltas(timedelta(0), length / 2 - MINUTE / 4))
    return request, TimeRange(start=start, end=end)


@pytest.mark.parametrize("path", OPENAPI["paths"])
def test_every_request_is_of_the_contract(base_url: str, path: str) -> None:
    """On both of its paths, for whole and for partial ranges; and no field that the contract does not name."""
    assert PATH in OPENAPI["paths"]
    with IngestClient(base_url, path) as ingest:

        @settings(max_examples=50, deadline=None)
        @given(questions(), st.uuids().map(str), st.datetimes(timezones=st.just(UTC)))
        def holds(question: tuple[TrainingRequest, TimeRange], request_id: str, now: datetime) -> None:
            request, wanted = question
            Recorder.asked.clear()
            answer = ingest.request_features(request_id, wanted, request, request.features.versioned(now))
            assert str(answer.status) in OPENAPI["paths"][path]["post"]["responses"]
            [(asked_path, content_type, raw)] = Recorder.asked
            assert (asked_path, content_type) == (f"{OPENAPI['servers'][0]['url']}{path}", "application/json")
            body = json.loads(raw)
            VALIDATOR.validate(body)
            for named, part in _objects(body):
                assert part.keys() <= OPENAPI["components"]["schemas"][named]["properties"].keys()
            assert (_time(body["start_time"]), _time(body["end_time"])) == (wanted.start, wanted.end)
            assert body["request_id"] == request_id
            assert body["symbol"] == request.symbol.strip().upper()

        holds()


def _time(text: str) -> datetime:
    assert text.endswith("Z"), "the zone is said, though none means UTC as well"
    return datetime.fromisoformat(text)


def _objects(body: dict[str, dict[str, list[dict[str, JsonValue]]]]) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    config = body["feature_config_version_info"]
    yield "FeaturePreprocessingRequest", {**body}
    yield "FeatureConfigVersionInfo", {**config}
    yield from (("FeatureDefinition", definition) for definition in config["feature_definitions"])


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": None},
        {"target_timeframes": []},
        {"target_timeframes": ["4h", "1h"]},
        {"base_timeframe": "2h"},
        {"symbol": " "},
        {"start_time": "2017-01-01"},
        {"processing_context": "study"},
        {"batch_size": "8"},
        {"feature_config_version_info": {"semver": "1.0.0"}},
        {"end_time": None},
    ],
    ids=str,
)
def test_document_refuses_what_the_contract_refuses(base_url: str, change: dict[str, JsonValue]) -> None:
    """A request of ours with one thing wrong is no longer of the contract."""
    request = TrainingRequest.model_validate(
        {
            "mode": "from_scratch",
            "model": "m",
            "symbol": "EURUSD",
            "base_timeframe": "1h",
            "timeframe": "4h",
            "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
            "features": {"semver": "1.0.0", "feature_definitions": [{"name": "rsi"}]},
            "data": {"columns": {"close": "close_price_value"}},
        }
    )
    Recorder.asked.clear()
    with IngestClient(base_url) as ingest:
        ingest.request_features("r", request.range, request, request.features.versioned(datetime.now(UTC)))
    [(_, _, raw)] = Recorder.asked
    assert VALIDATOR.is_valid(json.loads(raw))
    assert not VALIDATOR.is_valid(json.loads(raw) | change)
