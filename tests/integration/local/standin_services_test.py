"""Both stand-ins as real processes on a real broker: what they refuse, what they answer, what lies in Feast after it.

They have a broker of their own: a second preprocess on the session's broker would answer the requests of other tests.
"""

import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pandas as pd
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from training_fsm.local.broker import Broker, start_embedded_broker
from training_fsm.local.process import ManagedProcess, accepts_connections, free_port, start_process, wait_until
from training_fsm.local.standin.kafka import Outgoing, create_missing_topics, deliver, new_producer
from training_fsm.local.standin.wire import COMPLETED_TOPIC_BY_CONTEXT, REQUESTED_TOPIC, TOPICS, IngestRequest

pytestmark = [
    # Feast is imported here as a reader would: its own warnings are not ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

RSI_STEM = "rsi_14_d96c08b4dbc0b3ee845986f64170fea9"
DEFINITIONS = [
    {"name": "close_price", "enabled": True, "derivatives": [], "raw_parameter_sets": []},
    {
        "name": "rsi",
        "enabled": True,
        "derivatives": [],
        "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 14}],
    },
    {"name": "macd", "enabled": True, "derivatives": [1], "raw_parameter_sets": [{"type": "macd", "enabled": True}]},
    {"name": "ema", "enabled": False, "derivatives": [], "raw_parameter_sets": []},
]


def _version(definitions=DEFINITIONS, hash_="0123456789"):
    return {
        "semver": "1.0.0",
        "hash": hash_,
        "created_at": "2026-01-01T00:00:00Z",
        "feature_definitions": definitions,
    }


def _body(**changes):
    return {
        "symbol": "EURUSD",
        "base_timeframe": "1h",
        "target_timeframes": ["4h"],
        "feature_config_version_info": _version(),
        "start_time": "2017-02-01T00:00:00Z",
        "end_time": "2017-03-01T00:00:00Z",
        "request_id": "a request",
    } | changes


@dataclass
class Family:
    """The running stand-ins, and consumers that see every message once: preprocess's, and those it is sent."""

    bootstrap_servers: str
    base_url: str
    feast_repo: Path
    preprocess: ManagedProcess
    answers: Consumer
    requests: Consumer

    def post(self, path: str = "/api/v1/preprocessing/requests", **arguments) -> httpx.Response:
        return httpx.post(self.base_url + path, **arguments)

    def next_answer(self, timeout_s: float = 60) -> Message:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            message = self.answers.poll(0.1)
            if message is not None:
                assert message.error() is None
                return message
        raise AssertionError(f"no answer within {timeout_s:g} s; preprocess: {self.preprocess.last_lines()}")

    def last_requested(self) -> Message:
        """Give the newest message of the topic that ingest writes; it was answered already, so it is there."""
        found = self.requests.consume(1, timeout=10)
        while newer := self.requests.consume(1, timeout=0.5):
            found = newer
        return found[0]

    def answer_to(self, body) -> Message:
        """Post a request and give its answer."""
        response = self.post(json=body)
        assert response.status_code == 202, response.text
        return self.next_answer()


def _reader(bootstrap_servers: str, *topics: str) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "test",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
        }
    )
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING) for topic in topics])
    return consumer


def _start_preprocess(broker: Broker, folder: Path, *options: str) -> ManagedProcess:
    module = [sys.executable, "-m", "training_fsm.local.standin.preprocess"]
    where = ["--bootstrap-servers", broker.bootstrap_servers, "--feast-repo", str(folder / "repo")]
    return start_process("preprocess", [*module, *where, *options], log=folder / "preprocess.log")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Broker, ingest and preprocess, started once for this module."""
    folder = tmp_path_factory.mktemp("family")
    port = free_port()
    with start_embedded_broker(log=folder / "broker.log") as broker:
        servers = ["--bootstrap-servers", broker.bootstrap_servers]
        preprocess = _start_preprocess(broker, folder)
        command = [sys.executable, "-m", "training_fsm.local.standin.ingest", *servers, "--port", str(port)]
        ingest = start_process("ingest", command, log=folder / "ingest.log")
        with preprocess, ingest:
            wait_until(lambda: accepts_connections(port), ingest, 60, "ingest")
            wait_until(lambda: "consuming" in preprocess.last_lines(), preprocess, 60, "preprocess")
            answers = _reader(broker.bootstrap_servers, *(topic for topic in TOPICS if topic != REQUESTED_TOPIC))
            requests = _reader(broker.bootstrap_servers, REQUESTED_TOPIC)
            base_url = f"http://127.0.0.1:{port}"
            yield Family(broker.bootstrap_servers, base_url, folder / "repo", preprocess, answers, requests)
            answers.close()
            requests.close()
    assert preprocess.popen.returncode == 0
    assert ingest.popen.returncode == 0


def _rows(repo: Path, view_name: str) -> pd.DataFrame:
    """Pull a view's rows by Feast's offline store, sorted by time."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repo))
    view = store.get_feature_view(view_name)
    job = store._get_provider().offline_store.pull_all_from_table_or_query(
        config=store.config,
        data_source=view.batch_source,
        join_key_columns=["symbol"],
        feature_name_columns=[feature.name for feature in view.features],
        timestamp_field=view.batch_source.timestamp_field,
        start_date=pd.Timestamp("1990-01-01", tz="UTC").to_pydatetime(),
        end_date=pd.Timestamp("2020-01-01", tz="UTC").to_pydatetime(),
    )
    return job.to_df().set_index("event_timestamp").sort_index()


def test_topics_are_there(family: Family) -> None:
    """Preprocess creates every topic that it reads or writes, with one partition."""
    topics = family.answers.list_topics(timeout=10).topics
    assert {f"{kind}.preprocess-data" for kind in ("requested", "completed", "error", "retry", "dlq")} <= set(topics)
    assert {f"completed.preprocess-data.{kind}" for kind in ("offline", "online", "catchup")} <= set(topics)
    assert {len(topics[name].partitions) for name in topics if name.endswith("preprocess-data")} == {1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"symbol": None}, "symbol"),
        ({"symbol": "  "}, "symbol cannot be empty"),
        ({"base_timeframe": "2h"}, "base_timeframe"),
        ({"target_timeframes": []}, "target_timeframes"),
        ({"base_timeframe": "4h"}, "target timeframe 4h must be higher than base timeframe 4h"),
        ({"start_time": "2018-01-01T00:00:00Z"}, "end_time must be after start_time"),
        ({"request_id": None}, "request_id"),
        ({"processing_context": "leisure"}, "'training', 'inference', 'backfill' or 'catchup'"),
        (
            {"feature_config_version_info": _version(DEFINITIONS[3:])},
            "at least one feature definition must be enabled",
        ),
        ({"feature_config_version_info": {"semver": "1"}}, "feature_config_version_info.hash"),
    ],
)
def test_a_wrong_field_is_refused_with_pydantics_words(family: Family, changes, words: str) -> None:
    """A wrong field is a 400 whose error names it."""
    response = family.post(json=_body(**changes))
    assert response.status_code == 400
    assert set(response.json()) == {"error", "service"}
    assert response.json()["service"] == "drl-trading-ingest"
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"symbol": ', {"content-type": "application/json"}),
        (b"", {"content-type": "application/json"}),
        (json.dumps(_body()).encode(), {}),
        (json.dumps(_body()).encode(), {"content-type": "text/plain"}),
    ],
)
def test_what_is_no_json_is_a_fault_of_the_server(family: Family, content: bytes, headers) -> None:
    """Bad JSON, an empty body or a missing content type give 500, as the real one does."""
    response = family.post(content=content, headers=headers)
    assert response.status_code == 500
    assert response.json()["service"] == "drl-trading-ingest"


def test_wrong_paths_and_methods_are_answered_in_html(family: Family) -> None:
    """A wrong path is a 404, a wrong method a 405, and neither body is JSON."""
    missing = family.post("/api/v1/preprocessing", json=_body())
    method = httpx.get(family.base_url + "/api/v1/preprocessing/requests")
    assert (missing.status_code, method.status_code) == (404, 405)
    for response in (missing, method):
        assert response.headers["content-type"].startswith("text/html")
        assert response.text.startswith("<!doctype html>")


def test_health_says_healthy(family: Family) -> None:
    """The health check answers 200."""
    assert httpx.get(family.base_url + "/health").status_code == 200


def test_a_request_is_published_and_completed(family: Family) -> None:
    """The request goes to Kafka keyed by symbol, and the completion has key, headers and value of the contract."""
    assert family.post(json=_body(symbol=" eurusd ", unknown=1)).json() == {
        "request_id": "a request",
        "status": "accepted",
    }
    completed = family.next_answer()
    requested = family.last_requested()
    assert (requested.key(), requested.headers()) == (b"EURUSD", None)
    published = json.loads(requested.value())
    assert (published["request_id"], published["symbol"]) == ("a request", "EURUSD")
    assert published["feature_config_version_info"]["hash"] == "0123456789"
    assert completed.topic() == "completed.preprocess-data.offline"
    assert completed.key() == b"a request"
    assert dict(completed.headers()) == {
        "event_type": b"preprocessing_completed",
        "symbol": b"EURUSD",
        "processing_context": b"training",
        "request_id": b"a request",
    }
    value = json.loads(completed.value())
    assert json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() == completed.value()
    assert pd.Timestamp(value.pop("timestamp")).tzinfo is None
    assert value == {
        "request_id": "a request",
        "symbol": "EURUSD",
        "processing_context": "training",
        "total_features_computed": 5,
        "timeframes_processed": ["4h"],
        "feature_definitions_count": 3,
        "target_timeframes": ["4h"],
        "base_timeframe": "1h",
        "start_time": "2017-02-01T00:00:00+00:00",
        "end_time": "2017-03-01T00:00:00+00:00",
        "success_details": {"features_4h": 5, "records_4h": 124},
    }


def test_the_rows_lie_in_feast(family: Family) -> None:
    """Any Feast client that opens the folder finds the service, its views with roles, and the rows of the range."""
    from feast import FeatureStore

    body = _body(request_id="rows", feature_config_version_info=_version(hash_="of rows"))
    family.answer_to(body)
    store = FeatureStore(repo_path=str(family.feast_repo))
    service = store.get_feature_service("observation_space_EURUSD_4h_1.0.0_of rows")
    views = {p.name: store.get_feature_view(p.name) for p in service.feature_view_projections}
    macd = next(name for name in views if name.startswith("macd_12_26_9_"))
    assert set(views) == {"close_price_EURUSD_4h", f"{RSI_STEM}_EURUSD_4h", macd}
    assert views["close_price_EURUSD_4h"].tags == {"feature_role": "reward_engineering", "symbol": "EURUSD"}
    assert views[macd].tags == {"feature_role": "observation_space", "symbol": "EURUSD"}
    assert views[macd].entities == ["symbol"]
    assert views[macd].ttl == pd.Timedelta(days=1)
    assert {str(feature.dtype) for feature in views[macd].features} == {"Float32"}
    stem = macd.removesuffix("_EURUSD_4h")
    assert {feature.name for feature in views[macd].features} == {
        f"{stem}_{s}" for s in ("macd", "signal", "histogram")
    }
    rows = _rows(family.feast_repo, "close_price_EURUSD_4h")
    assert (len(rows), rows.index.min().isoformat()) == (124, "2017-02-01T00:00:00+00:00")
    assert rows.loc["2017-02-01 08:00+00:00", "close_price_value"] == 1.08021
    assert _rows(family.feast_repo, f"{RSI_STEM}_EURUSD_4h")[RSI_STEM].between(0, 100).all()
    files = [path.relative_to(family.feast_repo) for path in family.feast_repo.rglob("*.parquet")]
    assert {path.parts[:4] for path in files} >= {("EURUSD", "year=2017", "month=02", "day=01")}
    assert not [path for path in files if "4h" in str(path)]


def test_asking_again_changes_nothing(family: Family) -> None:
    """A range computed again gives the same rows; without `force_recompute` all features exist and none is computed."""
    family.answer_to(_body())
    before = _rows(family.feast_repo, f"{RSI_STEM}_EURUSD_4h")
    skipped = json.loads(family.answer_to(_body()).value())
    assert skipped["success_details"] == {"reason": "all_features_exist", "skipped": True}
    assert skipped["total_features_computed"] == 0
    again = json.loads(family.answer_to(_body(force_recompute=True)).value())
    assert again["total_features_computed"] == 5
    pd.testing.assert_frame_equal(_rows(family.feast_repo, f"{RSI_STEM}_EURUSD_4h"), before, check_like=True)


def test_timeframes_do_not_mix(family: Family) -> None:
    """Two timeframes of one symbol lie in the same folders, and each view has its own rows only."""
    family.answer_to(_body(target_timeframes=["4h", "1d"], request_id="two"))
    days = _rows(family.feast_repo, "close_price_EURUSD_1d")
    hours = _rows(family.feast_repo, "close_price_EURUSD_4h")
    assert set(days.index.hour) == {0}
    assert (len(days), len(hours)) == (24, 124)


def test_indicators_start_with_nan_at_the_beginning_of_history(family: Family) -> None:
    """The first fourteen rows of an RSI of fourteen are empty where there is no history before them."""
    family.answer_to(
        _body(
            symbol="SPX500",
            base_timeframe="1d",
            target_timeframes=["1w"],
            start_time="1999-01-01T00:00:00",
            end_time="2000-01-01T00:00:00",
            request_id="nan",
        )
    )
    rows = _rows(family.feast_repo, f"{RSI_STEM}_SPX500_1w")
    assert rows[RSI_STEM].isna().tolist() == [True] * 14 + [False] * (len(rows) - 14)
    assert len(rows) == 52


@pytest.mark.parametrize(
    "changes",
    [
        {"symbol": "NOPE"},
        {"base_timeframe": "5m"},
        {"start_time": "2020-01-01T00:00:00Z", "end_time": "2021-01-01T00:00:00Z"},
    ],
)
def test_without_market_data_the_completion_is_empty(family: Family, changes) -> None:
    """An unknown symbol, base or range is completed with no features and without a reason, as the real one does."""
    completed = family.answer_to(_body(**changes))
    value = json.loads(completed.value())
    assert dict(completed.headers())["event_type"] == b"preprocessing_completed"
    assert value["total_features_computed"] == 0
    assert value["timeframes_processed"] == []
    assert value["success_details"] == {}


@pytest.mark.parametrize(
    ("context", "topic"),
    [("backfill", "offline"), ("inference", "online"), ("catchup", "catchup")],
)
def test_the_context_chooses_the_topic(family: Family, context: str, topic: str) -> None:
    """Each processing context is answered on its own topic."""
    completed = family.answer_to(_body(processing_context=context, request_id=context))
    assert completed.topic() == f"completed.preprocess-data.{topic}"


def test_an_unknown_feature_is_a_validation_error(family: Family) -> None:
    """A feature that nobody knows is answered on the error topic by its name."""
    wizardry = {"name": "wizardry", "enabled": True, "derivatives": []}
    error = family.answer_to(_body(feature_config_version_info=_version([*DEFINITIONS, wizardry])))
    assert error.topic() == "error.preprocess-data"
    assert error.key() == b"a request"
    assert dict(error.headers())["event_type"] == b"feature_validation_error"
    value = json.loads(error.value())
    assert value["invalid_features"] == ["wizardry"]
    assert value["validation_errors"]["wizardry"].startswith("unknown feature, expected one of")
    assert value["total_features_requested"] == 4
    assert "timestamp" in value


def test_a_failing_store_is_a_preprocessing_error(family: Family) -> None:
    """When the rows cannot be stored, the error says which step failed and in what words."""
    blocking = family.feast_repo / "EURUSD" / "year=2017" / "month=06"
    blocking.parent.mkdir(parents=True, exist_ok=True)
    blocking.write_text("a file where a folder should be")
    error = family.answer_to(_body(start_time="2017-06-01T00:00:00Z", end_time="2017-06-02T00:00:00Z"))
    blocking.unlink()
    assert error.topic() == "error.preprocess-data"
    headers = dict(error.headers())
    assert headers["event_type"] == b"preprocessing_error"
    assert headers["failed_step"] == b"processing_pipeline"
    value = json.loads(error.value())
    assert str(blocking) in value["error_message"]
    assert value["error_details"] == {"error_type": "NotADirectoryError"}
    assert value["start_time"] == "2017-06-01T00:00:00+00:00"


def test_an_invalid_message_is_retried_and_buried(family: Family) -> None:
    """What is no request is retried three times, then buried, and what comes after it is handled."""
    producer = Producer({"bootstrap.servers": family.bootstrap_servers})
    producer.produce("requested.preprocess-data", key=b"EURUSD", value=b"\xff no request")
    producer.flush(10)
    seen = [family.next_answer() for _ in range(4)]
    # Which topic a consumer gives first is nobody's promise.
    assert sorted(message.topic() for message in seen) == ["dlq.preprocess-data", *["retry.preprocess-data"] * 3]
    assert {message.value() for message in seen} == {b"\xff no request"}
    assert json.loads(family.answer_to(_body(request_id="after")).value())["request_id"] == "after"


def test_the_published_path_answers_two_hundred_each_time(family: Family) -> None:
    """The path of the published specification is served too, and the same id is accepted twice."""
    for _ in range(2):
        response = family.post("/api/v1/preprocessing-requests", json=_body(request_id="twice"))
        assert (response.status_code, response.json()) == (200, {"request_id": "twice", "status": "accepted"})
    answers = [family.next_answer() for _ in range(2)]
    assert [(a.topic(), a.key()) for a in answers] == [("completed.preprocess-data.offline", b"twice")] * 2


def test_preprocess_runs_without_torch(family: Family) -> None:
    """The process that answers has not loaded torch."""
    maps = Path(f"/proc/{family.preprocess.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert "libtorch" not in maps.read_text()


def test_a_request_outlives_its_preprocess(tmp_path: Path) -> None:
    """A preprocess that is stopped before it answers leaves the request to the next one, which answers it once."""

    def ask(request_id: str) -> None:
        request = IngestRequest.model_validate(_body(request_id=request_id)).model_dump_json().encode()
        deliver(new_producer(broker.bootstrap_servers), Outgoing(REQUESTED_TOPIC, "EURUSD", request))

    with start_embedded_broker(log=tmp_path / "broker.log") as broker:
        create_missing_topics(broker.bootstrap_servers, TOPICS)
        ask("survivor")
        with _start_preprocess(broker, tmp_path, "--answer-delay-s", "60") as first:
            wait_until(lambda: "stored request_id=survivor" in first.last_lines(), first, 60, "preprocess")
            first.popen.send_signal(signal.SIGTERM)
            first.popen.wait(timeout=20)
        answers = _reader(broker.bootstrap_servers, COMPLETED_TOPIC_BY_CONTEXT["training"])
        with _start_preprocess(broker, tmp_path):
            assert [answer.key() for answer in answers.consume(1, timeout=60)] == [b"survivor"]
        ask("next")
        with _start_preprocess(broker, tmp_path):
            assert [answer.key() for answer in answers.consume(1, timeout=60)] == [b"next"]
        answers.close()
