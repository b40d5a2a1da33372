"""The whole orchestrator on a real Postgres and broker: what goes in, what lies in the log, what comes out."""

import json
import sys
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from training_fsm.domain.decide import feature_request_id
from training_fsm.domain.events import RunFailed
from training_fsm.domain.facts import Failure
from training_fsm.domain.states import State
from training_fsm.local.process import free_port, start_process
from training_fsm.ports import Cause
from training_fsm.store.event_log import PostgresEventLog

if TYPE_CHECKING:
    from conftest import Station

STRUCTURED = {"content-type": "application/cloudevents+json"}
ERRORS = "error.preprocess-data"

FAILED = (
    "preprocessing_error",
    {
        "error_message": "no market data",
        "error_details": {"timeframe": "4h"},
        "failed_step": "feature_warmup",
        "target_timeframes": ["4h"],
        "base_timeframe": "1h",
        "start_time": "2017-01-01T00:00:00+00:00",
        "end_time": "2018-01-01T00:00:00+00:00",
    },
)
INVALID = (
    "feature_validation_error",
    {"invalid_features": ["rsj"], "validation_errors": {"rsj": "unknown feature"}, "total_features_requested": 2},
)


def _request(fields: dict[str, object], run_id: str, symbol: str = "EURUSD") -> dict[str, object]:
    return fields | {"run_id": run_id, "symbol": symbol}


def test_each_message_of_a_mixed_batch_has_exactly_one_outcome(
    station: "Station", request_fields: dict[str, object], header_of
) -> None:
    """Good, bad, repeated and unreadable ones, sent before anybody reads: seen in the log and on the topics."""
    topic = station.topics.requested
    binary = {"ce_source": "test", "ce_specversion": "1.0"}
    requested = {"ce_type": "request_training"}
    for command_id in ("good-1", "good-1", "good-2"):  # the same command twice
        body = _request(request_fields, f"run-of-{command_id}")
        station.send(topic, body, binary | requested | {"ce_id": command_id}, partition=0)
    data = _request(request_fields, "structured")
    event = {"specversion": "1.0", "id": "good-3", "source": "test", "type": "request_training", "data": data}
    station.send(topic, event, STRUCTURED)
    station.send(topic, {"type": "request_training"} | _request(request_fields, "plain"))
    station.send(topic, request_fields, binary | requested | {"ce_id": "good-5"}, key="by-key")
    station.send(topic, {}, binary | {"ce_id": "bad-1", "ce_type": "cancel_run"}, key="nobody")
    station.send(topic, {"run_id": "x"}, binary | {"ce_id": "bad-2", "ce_type": "dance"})
    wrong = _request(request_fields, "wrong") | {"timeframe": "3h"}
    station.send(topic, wrong, binary | requested | {"ce_id": "bad-3"})
    station.send(topic, {"run_id": "a"}, binary | {"ce_id": "bad-4", "ce_type": "retry_run"}, key="b")
    letters = [b"", b"{", b"\xff\xfe", b'{"type": "a\\u0000"}', b"[" * 500 + b"]" * 500, bytes(200_000), b'{"x": NaN}']
    for letter in letters:
        station.send(topic, letter, key=b"\x00\xffk")
    station.flush()
    runs = {"run-of-good-1", "run-of-good-2", "structured", "plain", "by-key"}
    with (
        station.orchestrator(),
        station.reader(station.topics.events, station.topics.error, station.topics.dead_letters) as reader,
    ):
        expected = len(runs) * 3 + 4 * 2 + len(letters)  # requested, asked, answered; refusals on two topics
        messages = list(reader.until(lambda found: len(found) >= expected))
        messages = list(reader.more(1.0))
    assert {row.run_id for row in station.rows("SELECT run_id FROM run_heads")} == runs
    outcomes = Counter(row.outcome for row in station.rows("SELECT outcome FROM commands"))
    assert outcomes == {"accepted": 5, "refused": 4}
    assert len(station.rows("SELECT 1 FROM dead_letters")) == len(letters)
    reasons = {command_id: str(station.outcome(command_id)) for command_id in ("bad-1", "bad-2", "bad-3", "bad-4")}
    assert "there is no run nobody" in reasons["bad-1"]
    assert "type: expected one of" in reasons["bad-2"]
    assert "timeframe: expected" in reasons["bad-3"]
    assert "the message's key says 'b'" in reasons["bad-4"]
    ids = Counter((message.topic(), header_of(message, "ce_id")) for message in messages)
    assert max(ids.values()) == 1
    for run_id in runs:
        assert ids[station.topics.events, f"run-{run_id}/1"] == 1
        assert station.history(run_id) == ["run_requested", "features_requested", "feature_request_answered"]
    errors = {
        message.key(): json.loads(message.value()) for message in messages if message.topic() == station.topics.error
    }
    assert errors.keys() == {b"bad-1", b"bad-2", b"bad-3", b"bad-4"}
    assert errors[b"bad-1"]["data"]["reason"] in reasons["bad-1"]
    dead = [message for message in messages if message.topic() == station.topics.dead_letters]
    assert [message.key() for message in dead] == [b"\x00\xffk"] * len(letters)
    assert len(ids) == expected


def test_a_command_that_comes_again_later_changes_nothing(served: "Station", request_fields: dict[str, object]) -> None:
    """The inbox remembers it, whatever it says the second time."""
    command_id = served.command("request_training", _request(request_fields, "once"))
    served.ends_with("once", "feature_request_answered")
    served.command("cancel_run", {"run_id": "once"}, command_id)
    later = served.command("cancel_run", {"run_id": "unknown"})
    served.wait(lambda: served.outcome(later))
    assert served.outcome(command_id) == ("accepted", None)
    assert served.history("once")[-1] == "feature_request_answered"


def test_ingest_is_asked_in_the_words_of_its_contract(served: "Station", request_fields: dict[str, object]) -> None:
    """Symbol, frames, range and our own request id."""
    served.command("request_training", _request(request_fields, "asked"))
    served.ends_with("asked", "feature_request_answered")
    [body] = [asked for asked in served.ingest.asked if asked["request_id"] == feature_request_id("asked", 1)]
    assert (body["symbol"], body["base_timeframe"], body["target_timeframes"]) == ("EURUSD", "1h", ["4h"])
    assert body["processing_context"] == "training"


def test_a_refusal_of_ingest_fails_the_run_in_its_words(served: "Station", request_fields: dict[str, object]) -> None:
    """A 400 is not tried again."""
    served.ingest.scripts["REFUSED"] = [(400, {"error": "symbol: we do not know REFUSED", "service": "ingest"})]
    served.command("request_training", _request(request_fields, "refused", "REFUSED"))
    assert served.ends_with("refused", "run_failed") == ["run_requested", "features_requested", "run_failed"]
    [failed] = served.payloads("refused", "run_failed")
    assert failed["reason"]["kind"] == "ingest_refused"
    assert "ingest answered 400: symbol: we do not know REFUSED" in failed["reason"]["words"]
    with served.reader(served.topics.error) as reader:
        messages = reader.until(lambda found: any(message.key() == b"refused" for message in found))
    assert any(b"we do not know REFUSED" in message.value() for message in messages)


def test_an_ingest_that_is_away_for_a_while_is_asked_again(
    served: "Station", request_fields: dict[str, object]
) -> None:
    """Each 503 is an event; the pauses grow; under the same request id it is accepted at last."""
    away = (503, {"error": "starting", "service": "ingest"})
    good = (202, {"request_id": feature_request_id("patient", 1), "status": "accepted"})
    served.ingest.scripts["AWAY"] = [away, away, away, good]
    served.command("request_training", _request(request_fields, "patient", "AWAY"))
    history = served.ends_with("patient", "feature_request_answered")
    assert history == [
        "run_requested",
        "features_requested",
        *["attempt_failed"] * 3,
        "feature_request_answered",
    ]
    rows = served.rows(
        "SELECT occurred_at, payload FROM events WHERE stream = 'run-patient' AND type = 'attempt_failed'"
    )
    assert [row.payload["attempt"] for row in rows] == [1, 2, 3]
    pauses_s = [(datetime.fromisoformat(row.payload["retry_at"]) - row.occurred_at).total_seconds() for row in rows]
    bounds_s = [0.2, 0.4, 0.8]
    assert all(bound / 2 - 1e-3 <= pause <= bound + 1e-3 for bound, pause in zip(bounds_s, pauses_s, strict=True))
    assert "answered 503: starting" in rows[0].payload["reason"]["words"]
    asked = [body["request_id"] for body in served.ingest.asked if body["symbol"] == "AWAY"]
    assert asked == [feature_request_id("patient", 1)] * 4


def test_an_ingest_that_cannot_be_reached_fails_the_run_at_its_deadline(
    station: "Station", request_fields: dict[str, object]
) -> None:
    """The failure names ingest and what happened last."""
    with station.orchestrator(ingest_url=f"http://127.0.0.1:{free_port()}/api/v1", features_deadline_s=1.5):
        station.command("request_training", _request(request_fields, "unreached"))
        station.look_in_vain("unreached")
        history = station.ends_with("unreached", "run_failed")
    assert history.count("attempt_failed") >= 2
    [failed] = station.payloads("unreached", "run_failed")
    assert (failed["reason"]["kind"], failed["reason"]["service"]) == ("ingest_unavailable", "ingest")
    assert "ConnectError" in failed["reason"]["detail"]
    assert failed["failed_from"] == "AWAITING_FEATURES"


def test_a_preprocess_that_is_silent_fails_the_run_at_its_deadline(
    station: "Station", request_fields: dict[str, object]
) -> None:
    """Its completion, when it comes after all, is recorded, and a retry uses it."""
    with station.orchestrator(features_deadline_s=1):
        station.command("request_training", _request(request_fields, "late"))
        station.look_in_vain("late")
        history = station.ends_with("late", "run_failed")
        assert history[-4:-1] == ["feature_request_answered", "deadline_passed", "run_claimed"]
        [failed] = station.payloads("late", "run_failed")
        assert (failed["reason"]["kind"], failed["reason"]["service"]) == ("deadline", "preprocess")
        station.complete(station.request_id("late"))
        station.ends_with("late", "features_ready")
        station.command("retry_run", {"run_id": "late"})
        history = station.wait(lambda: station.history("late"), lambda types: types.count("features_ready") == 2)
    assert history[-2:] == ["run_retried", "features_ready"]
    assert station.rows("SELECT state FROM run_heads")[0].state == "TRAINING"


def test_a_completion_moves_the_run_once(served: "Station", request_fields: dict[str, object]) -> None:
    """Repeats, and completions for strangers, change nothing."""
    served.command("request_training", _request(request_fields, "ready"))
    served.ends_with("ready", "feature_request_answered")
    request_id = served.request_id("ready")
    served.complete("a stranger's")
    for _ in range(3):
        served.complete(request_id)
    history = served.ends_with("ready", "features_ready")
    served.complete(request_id, total_features_computed=7)
    served.command("request_training", _request(request_fields, "after"))
    served.ends_with("after", "feature_request_answered")
    served.complete(served.request_id("after"))
    served.ends_with("after", "features_ready")  # all that came before has been read
    assert served.history("ready") == history
    assert history.count("features_ready") == 1
    assert not served.rows("SELECT 1 FROM dead_letters")


def test_an_answer_that_is_quicker_than_ingest_is_no_fault(
    served: "Station", request_fields: dict[str, object]
) -> None:
    """The completion comes while ingest fails: the run trains, and what ingest says then is history."""
    served.ingest.scripts["QUICK"] = [(503, {"error": "busy", "service": "ingest"})]
    served.command("request_training", _request(request_fields, "quick", "QUICK"))
    served.wait(lambda: "attempt_failed" in served.history("quick"))
    served.complete(served.request_id("quick"))
    served.wait(lambda: "features_ready" in served.history("quick"))
    asked = len(served.ingest.asked)
    served.command("request_training", _request(request_fields, "other"))
    served.ends_with("other", "feature_request_answered")
    assert served.history("quick")[-1] == "features_ready"
    assert all(body["symbol"] != "QUICK" for body in served.ingest.asked[asked + 2 :])


@pytest.mark.parametrize("status", [400, 503, 202])
def test_what_ingest_says_after_preprocess_has_answered_changes_nothing(
    status: int, served: "Station", request_fields: dict[str, object]
) -> None:
    """The completion comes before the call to ingest has returned: a run that trains is not failed by it."""
    run_id = f"overtaken-{status}"
    held = served.ingest.held[run_id.upper()] = threading.Event()
    served.ingest.scripts[run_id.upper()] = [
        (status, {"error": "no", "request_id": feature_request_id(run_id, 1), "status": "accepted"})
    ]
    served.command("request_training", _request(request_fields, run_id, run_id.upper()))
    served.wait(lambda: any(body["symbol"] == run_id.upper() for body in served.ingest.asked))
    served.complete(served.request_id(run_id))
    history = served.ends_with(run_id, "features_ready")
    held.set()
    for number in range(2):  # the second is asked after the first's round is over
        served.command("request_training", _request(request_fields, f"{run_id}-{number}"))
        served.ends_with(f"{run_id}-{number}", "feature_request_answered")
    assert served.history(run_id) == history == ["run_requested", "features_requested", "features_ready"]


@pytest.mark.parametrize(
    ("run_id", "errors", "words", "detail"),
    [
        ("broken", (FAILED, INVALID), "no market data", "failed_step: feature_warmup\ntimeframe: 4h"),
        ("misspelt", (INVALID, FAILED), "invalid features: ['rsj']", "rsj: unknown feature"),
    ],
)
def test_an_error_of_preprocess_fails_the_run_in_its_words(
    run_id: str,
    errors: tuple[tuple[str, dict[str, object]], ...],
    words: str,
    detail: str,
    served: "Station",
    request_fields: dict[str, object],
    header_of,
) -> None:
    """What else comes for the same request changes nothing; a retry asks again under a new id."""
    served.command("request_training", _request(request_fields, run_id))
    served.ends_with(run_id, "feature_request_answered")
    about = {"request_id": served.request_id(run_id), "symbol": "EURUSD", "processing_context": "training"}
    about["timestamp"] = "2026-11-24T12:00:00"
    for event_type, body in (*errors, *errors):
        served.send(ERRORS, about | body, {"event_type": event_type}, key=str(about["request_id"]))
    served.flush()
    failed_at = len(served.ends_with(run_id, "run_failed"))
    [failed] = served.payloads(run_id, "run_failed")
    assert failed["failed_from"] == "AWAITING_FEATURES"
    reason = {name: text for name, text in failed["reason"].items() if text is not None}
    assert reason == {
        "kind": "preprocess_failed",
        "words": words,
        "service": "preprocess",
        "field": errors[0][0],
        "detail": detail,
    }
    served.command("retry_run", {"run_id": run_id, "actor": "ann", "why": "data is there"})
    served.ends_with(run_id, "feature_request_answered")
    assert served.request_id(run_id) == feature_request_id(run_id, 2)
    with served.reader(served.topics.error) as reader:
        reader.until(lambda found: any(message.key() == run_id.encode() for message in found))
        told = [message for message in reader.more(0.5) if message.key() == run_id.encode()]
    assert [header_of(message, "ce_id") for message in told] == [f"run-{run_id}/{failed_at}"]
    assert json.loads(told[0].value())["data"] == failed


def test_not_all_on_the_error_topic_of_preprocess_is_a_failure(
    served: "Station", request_fields: dict[str, object]
) -> None:
    """A resampling error names no request, so that the run waits; a completion that ended there is one."""
    served.command("request_training", _request(request_fields, "detour"))
    history = served.ends_with("detour", "feature_request_answered")
    resampling = {
        "symbol": "EURUSD",
        "base_timeframe": "1h",
        "target_timeframes": ["4h"],
        "error_message": "no bars",
        "error_details": {},
    }
    served.send(ERRORS, resampling, {"event_type": "resampling_error"}, key="EURUSD")
    request_id = str(served.request_id("detour"))
    completion = {"request_id": request_id, "total_features_computed": 6, "success_details": {"features_4h": 6}}
    undelivered = {"event_type": "preprocessing_completed", "error_message": "queue full"}
    undelivered["original_topic"] = "completed.preprocess-data.offline"
    served.send(ERRORS, completion, undelivered, key=request_id)  # behind the other: the topic has one partition
    served.flush()
    assert served.ends_with("detour", "features_ready") == [*history, "features_ready"]
    assert served.payloads("detour", "features_ready") == [completion]
    assert not served.rows("SELECT 1 FROM dead_letters")


def test_a_cancelled_run_is_told_as_completed(served: "Station", request_fields: dict[str, object]) -> None:
    """And what preprocess says then is not heard."""
    served.command("request_training", _request(request_fields, "gone"))
    served.ends_with("gone", "feature_request_answered")
    served.command("cancel_run", {"run_id": "gone", "actor": "ann", "why": "typo"})
    served.ends_with("gone", "run_cancelled")
    served.complete(served.request_id("gone"))
    with served.reader(served.topics.completed) as reader:
        [message] = [
            message
            for message in reader.until(lambda found: any(message.key() == b"gone" for message in found))
            if message.key() == b"gone"
        ]
    assert json.loads(message.value())["data"] == {"actor": "ann", "why": "typo"}
    again = served.command("cancel_run", {"run_id": "gone"})
    served.wait(lambda: served.outcome(again))
    assert served.outcome(again) == ("refused", "cancel_run does not fit a run in CANCELLED: it has ended")
    assert served.history("gone")[-1] == "run_cancelled"


@pytest.mark.parametrize("end", ["CANCELLED", "FAILED"])
def test_a_resume_that_comes_behind_the_end_is_refused(
    end: str, served: "Station", request_fields: dict[str, object]
) -> None:
    """The pause that was wanted while it trained brings nothing back; the sender is told why."""
    run_id = f"paused-{end}"
    served.command("request_training", _request(request_fields, run_id))
    served.ends_with(run_id, "feature_request_answered")
    served.complete(served.request_id(run_id))
    served.ends_with(run_id, "features_ready")
    served.command("pause_run", {"run_id": run_id, "actor": "ann", "why": "night"})
    served.ends_with(run_id, "pause_requested")
    if end == "CANCELLED":
        served.command("cancel_run", {"run_id": run_id, "actor": "ann", "why": "enough"})
    else:
        with PostgresEventLog(served.engine).begin() as unit:
            reason = Failure(kind="training_error", words="out of memory")
            failed = RunFailed(reason=reason, failed_from=State.TRAINING)
            unit.append(run_id, [failed], Cause("worker-1", "work", run_id))
    history = served.wait(lambda: served.history(run_id), lambda types: types[-1] in ("run_cancelled", "run_failed"))
    resume = served.command("resume_run", {"run_id": run_id, "actor": "ann", "why": "morning"})
    letters = "SELECT reason FROM dead_letters"
    served.wait(lambda: served.outcome(resume) or served.rows(letters))
    assert served.rows(letters) == []
    words = f"resume_run does not fit a run in {end}: expected PAUSED"
    assert served.outcome(resume) == ("refused", words)
    assert served.history(run_id) == history
    with served.reader(served.topics.error) as reader:
        messages = reader.until(lambda found: any(message.key() == resume.encode() for message in found))
    [told] = [message for message in messages if message.key() == resume.encode()]
    assert json.loads(told.value())["data"]["reason"] == words


def test_the_stand_in_of_ingest_takes_what_we_send(
    station: "Station", request_fields: dict[str, object], tmp_path: Path
) -> None:
    """A real process with the family's own rules accepts our request and passes it on."""
    port = free_port()
    argv = [sys.executable, "-m", "training_fsm.local.standin.ingest", "--port", str(port)]
    argv += ["--bootstrap-servers", station.settings.bootstrap_servers]
    with start_process("ingest", argv, log=tmp_path / "ingest.log") as ingest:
        with station.orchestrator(ingest_url=f"http://127.0.0.1:{port}/api/v1"):
            station.command("request_training", _request(request_fields, "real"))
            station.ends_with("real", "feature_request_answered")
        assert f"accepted request_id={feature_request_id('real', 1)}" in ingest.last_lines(50)
    [answered] = station.payloads("real", "feature_request_answered")
    assert answered["status"] == 202


def test_a_postgres_that_was_away_is_waited_for(station: "Station", request_fields: dict[str, object]) -> None:
    """Connections that are cut in the middle lose nothing and double nothing."""
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'training-fsm-orchestrator'"
    with station.orchestrator():
        for number in range(30):
            station.command("request_training", _request(request_fields, f"r{number}"))
            if number % 5 == 2:
                station.rows(cut)
        station.wait(lambda: len(station.rows("SELECT 1 FROM run_heads")), lambda count: count == 30)
        with station.reader(station.topics.events) as reader:
            reader.until(lambda found: len({message.key() for message in found}) == 30)
    assert all(station.history(f"r{number}")[:2] == ["run_requested", "features_requested"] for number in range(30))


def test_two_orchestrators_share_the_work(station: "Station", request_fields: dict[str, object], header_of) -> None:
    """Each command is decided once, whoever reads it, and each event is published once."""
    with station.orchestrator(), station.orchestrator():
        for number in range(40):
            station.command("request_training", _request(request_fields, f"r{number}"))
        station.wait(
            lambda: len(station.rows("SELECT 1 FROM events WHERE type = 'feature_request_answered'")),
            lambda count: count == 40,
        )
        with station.reader(station.topics.events) as reader:
            reader.until(lambda found: len(found) >= 120)
            messages = reader.more(0.5)
    ids = Counter(header_of(message, "ce_id") for message in messages)
    assert len(ids) == 120
    assert max(ids.values()) == 1
