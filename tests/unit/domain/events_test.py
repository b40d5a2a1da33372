"""Events as they are stored: text that says everything, and not too much of it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_fsm.domain import events as e
from training_fsm.domain.commands import RequestTraining
from training_fsm.domain.decide import EVENT_BYTES_MAX, Refusal, decide
from training_fsm.domain.facts import MAX_WORDS, Artifact, Failure, Verdict
from training_fsm.domain.policy import Policy
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.states import State
from training_fsm.domain.upcasters import UPCASTERS, read_event

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
Life = Callable[[str], tuple[e.Event, ...]]
ContinuedLife = Callable[[str, bool], tuple[e.Event, ...]]


def _read(event: e.Event) -> e.Event:
    return read_event(event.type(), event.schema_version, event.model_dump_json())


def _all(life: Life, continued_life: ContinuedLife) -> tuple[e.Event, ...]:
    """One event of every type at least."""
    whole = life("r")
    failure = Failure(kind="training_error", words="loss is \x00 NaN", field="loss", range="…", detail="Ünï\u2028")
    started = next(event for event in whole if isinstance(event, e.TrainingStarted))
    return (
        *whole,
        *continued_life("c", True),
        e.ChampionPromoted(name="m", version=2, digest="d", run_id="r", supersedes=1),
        e.TrainingResumed(
            token=2,
            step=0,
            checkpoint=None,
            fidelity="approximate",
            fingerprint=started.fingerprint,
            differences=("torch: 1 / 2",),
        ),
        e.ModelRejected(failed=("sharpe", "trades")),
        e.AttemptFailed(reason=failure, attempt=3, retry_at=NOON),
        e.RunFailed(reason=failure, failed_from=State.TRAINING),
        e.RunCancelled(actor="ä", why='"\\'),
        e.RunRetried(actor="", why=""),
        e.FeaturesIncomplete(service="s", field=None, range=None, words="w"),
        e.DeadlinePassed(request_id="q"),
        e.PauseRequested(actor="", why=""),
        e.RunPaused(actor="", why="", step=1),
        e.RunResumed(actor="", why=""),
        e.RunExtended(additional_timesteps=1, actor="", why=""),
        e.RejectionOverridden(actor="a", why="w"),
        e.ArtifactsReleased(artifacts=(Artifact(uri="runs:/r/f", sha256="a", size_bytes=1),), why="retention"),
        e.LogRestored(last_position=2, published_position=4),
        e.CommandRefused(command_id="1", command_source="s", command_type="t", run_id=None, reason="no"),
        e.MessageDeadLettered(
            topic="t",
            partition=0,
            offset=2**53,
            reason="no",
            sha256="a",
            size_bytes=3,
            key_base64=None,
            bytes="YQ==",
        ),
    )


def test_every_event_type_comes_back_from_its_text(life: Life, continued_life: ContinuedLife) -> None:
    """What was stored and is read again is written as the same bytes again."""
    events = _all(life, continued_life)
    assert {type(event) for event in events} == set(e.EVENT_TYPES.values())
    for event in events:
        assert _read(event).model_dump_json() == event.model_dump_json()


def test_event_types_are_the_vocabulary_s(life: Life) -> None:
    """Names on the wire are the classes' in snake_case."""
    assert e.RunRequested.type() == "run_requested"
    assert e.MessageDeadLettered.type() == "message_dead_lettered"
    assert list(e.EVENT_TYPES) == [kind.type() for kind in e.EVENT_TYPES.values()]


@given(st.floats())
def test_any_float_comes_back_as_it_was(number: float) -> None:
    """NaN and infinities, which JSON cannot hold, are written as strings."""
    verdict = Verdict(name="n", passed=False, score=number, threshold=-number, explanation="")
    text = verdict.model_dump_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    back = Verdict.model_validate_json(text)
    assert (repr(back.score), repr(back.threshold)) == (repr(number), repr(-number))


@given(st.text(max_size=50))
def test_any_words_of_others_can_be_stored(words: str) -> None:
    """NUL characters and lone surrogates, which Postgres cannot read back, are replaced."""
    failure = Failure(kind="ingest_refused", words=words, detail=words)
    text = failure.model_dump_json()
    assert "\\u0000" not in text
    assert Failure.model_validate_json(text) == failure


def test_unknown_events_are_named() -> None:
    """A log written by a newer build says so."""
    with pytest.raises(ValueError, match="event run_dreamt version 1 is newer than this build"):
        read_event("run_dreamt", 1, "{}")
    with pytest.raises(ValueError, match="event run_claimed version 2 is newer than this build"):
        read_event("run_claimed", 2, "{}")


def test_old_versions_are_brought_up_to_date_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload of version 1 goes through both upcasters, one of version 2 through the second."""
    monkeypatch.setattr(e.RunClaimed, "schema_version", 3)
    monkeypatch.setitem(
        UPCASTERS, ("run_claimed", 1), lambda data: {"lease": data["lease_ms"] / 1000, "token": data["token"]}
    )
    monkeypatch.setitem(
        UPCASTERS, ("run_claimed", 2), lambda data: {"lease_s": data["lease"], "token": data["token"], "worker": "?"}
    )
    current = e.RunClaimed(token=7, worker="?", lease_s=1.5)
    assert read_event("run_claimed", 1, '{"token": 7, "lease_ms": 1500}') == current
    assert read_event("run_claimed", 2, '{"token": 7, "lease": 1.5}') == current
    assert read_event("run_claimed", 3, current.model_dump_json()) == current


def _padded(fields: dict[str, object], bytes_: int, unit: str) -> TrainingRequest:
    """A request whose JSON, as it travels, has about so many bytes; the padding lies in a parameter set."""
    empty = len(json.dumps(fields))
    padding = json.loads("[" + ",".join([unit] * ((bytes_ - empty - 100) // (len(unit) + 1))) + "]")
    definition = {"name": "rsi", "raw_parameter_sets": [{"type": "rsi", "padding": padding}]}
    wide = fields | {"features": {"semver": "1.0.0", "feature_definitions": [definition]}}
    return TrainingRequest.model_validate_json(json.dumps(wide), strict=True)


@pytest.mark.parametrize(("unit", "fits"), [('"xxxxxxxxxxxxxxx"', True), ("1e15", False)])
def test_no_request_makes_an_event_that_is_too_large(unit: str, fits: bool, request_fields: dict[str, object]) -> None:
    """The largest command is stored, or refused where its numbers grow when they are written out."""
    request = _padded(request_fields, 261_000 if fits else 262_144, unit)
    decision = decide(None, RequestTraining(run_id="r", request=request), NOON, Policy())
    if fits:
        assert isinstance(decision, tuple)
        size = len(decision[0].model_dump_json().encode())
        assert EVENT_BYTES_MAX * 0.98 < size <= EVENT_BYTES_MAX
    else:
        assert isinstance(decision, Refusal)
        assert decision.reason.startswith(f"request: expected at most {EVENT_BYTES_MAX} bytes")


def test_the_longest_words_of_a_failure_fit_into_an_event() -> None:
    """Characters that JSON escapes take six bytes each."""
    failure = Failure(kind="training_error", words="\x01" * MAX_WORDS * 2, detail="\x01" * MAX_WORDS * 2)
    event = e.RunFailed(reason=failure, failed_from=State.TRAINING)
    assert len(event.model_dump_json()) < EVENT_BYTES_MAX
