import base64
import json
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from typer.testing import Result

from training_fsm.messaging.message import Message, dead_letter
from training_fsm.ports import Cause
from training_fsm.store.event_log import PostgresEventLog

Cli = Callable[..., Result]

OURS, THEIRS = "requested.train-model", "completed.preprocess-data.offline"
HEADERS = (("ce_id", b"7"), ("trace", b"\xff\x00"))
BINARY = bytes(range(256)) * 8


@pytest.fixture
def letters(engine: sa.Engine) -> dict[str, str]:
    """Ids of a text with a key and headers, of bytes without either, and of one from a neighbour's topic."""
    made = {
        "text": dead_letter(Message(OURS, 1, 41, 5, b"run-1", b'{"type": 7}\n', HEADERS), "type: expected one of …"),
        "bytes": dead_letter(Message(OURS, 0, 7, 5, None, BINARY), "value: expected \x1b[31mUTF-8 text"),
        "theirs": dead_letter(Message(THEIRS, 0, 3, 5, b"EURUSD", b"[]"), "value: expected a JSON object, got list"),
    }
    log = PostgresEventLog(engine)
    for letter in made.values():
        with log.begin() as unit:
            unit.dead_letter(letter, Cause("orchestrator", "1", "1"))
    return {name: letter.letter_id for name, letter in made.items()}


def test_without_letters_there_is_a_word(engine: sa.Engine, cli: Cli) -> None:
    """An empty table is not an empty screen; JSON is an empty array."""
    assert cli("dlq", "list").stdout == "no dead letters\n"
    assert json.loads(cli("dlq", "list", "--json").stdout) == []


def test_letters_are_listed_newest_first_with_place_and_reason(letters: dict[str, str], cli: Cli) -> None:
    """A topic and a limit narrow the list; what came from outside cannot steer the terminal."""
    shown = cli("dlq", "list").stdout.splitlines()
    assert [line.split()[0] for line in shown[1:]] == [letters[name][:12] for name in ("theirs", "bytes", "text")]
    assert f"{OURS}/1 at 41" in shown[3]
    assert "\x1b" not in shown[2]
    listed = json.loads(cli("dlq", "list", "--topic", OURS, "--limit", "1", "--json").stdout)
    assert [(one["letter_id"], one["size_bytes"], one["replays"]) for one in listed] == [(letters["bytes"], 2048, [])]


def test_a_letter_is_shown_with_key_headers_and_value(letters: dict[str, str], cli: Cli) -> None:
    """Text as text, bytes as a hex dump with their beginning, and the way to all of them."""
    text = cli("dlq", "show", letters["text"][:8]).stdout
    for words in (letters["text"], f"{OURS}/1 at 41", "type: expected one of", "run-1", "ce_id: 7", "trace: ff 00"):
        assert words in text
    assert text.endswith('{"type": 7}\n\n')
    dump = cli("dlq", "show", letters["bytes"]).stdout
    assert "00000040  40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO" in dump
    assert dump.endswith("… and 1,024 bytes more; --raw writes all\n")


def test_raw_writes_the_very_bytes(letters: dict[str, str], cli: Cli) -> None:
    """For a file or another program; not together with JSON."""
    assert cli("dlq", "show", letters["bytes"], "--raw").stdout_bytes == BINARY
    assert cli("dlq", "show", letters["bytes"], "--raw", "--json").exit_code == 2


def test_json_has_all_of_a_letter(letters: dict[str, str], cli: Cli) -> None:
    """Bytes are base64, and no key is null."""
    shown = json.loads(cli("dlq", "show", letters["text"], "--json").stdout)
    assert base64.b64decode(shown["value_base64"]) == b'{"type": 7}\n'
    assert base64.b64decode(shown["key_base64"]) == b"run-1"
    assert [(one["name"], base64.b64decode(one["value_base64"])) for one in shown["headers"]] == list(HEADERS)
    assert json.loads(cli("dlq", "show", letters["bytes"], "--json").stdout)["key_base64"] is None


def test_a_letter_from_before_headers_were_kept_says_so(letters: dict[str, str], engine: sa.Engine, cli: Cli) -> None:
    """Its key is the one in its event."""
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE dead_letters SET key = NULL, headers = NULL"))
    shown = cli("dlq", "show", letters["text"]).stdout
    assert "not kept when this letter came" in shown
    assert "run-1" in shown
    assert json.loads(cli("dlq", "show", letters["text"], "--json").stdout)["headers"] is None


def test_unknown_and_ambiguous_letters_are_told_apart(letters: dict[str, str], cli: Cli) -> None:
    """One is not there, the other is bad input with the candidates."""
    unknown = cli("dlq", "show", "nobody")
    assert (unknown.exit_code, unknown.stderr) == (1, "there is no dead letter nobody\n")
    several = cli("dlq", "show", "")
    assert several.exit_code == 2
    assert letters["theirs"] in several.stderr


def test_a_dry_run_sends_nothing_and_records_nothing(letters: dict[str, str], engine: sa.Engine, cli: Cli) -> None:
    """It needs no broker either."""
    result = cli("dlq", "replay", letters["text"], letters["bytes"][:10], "--dry-run", "--json")
    assert [one["letter_id"] for one in json.loads(result.stdout)] == [letters["text"], letters["bytes"]]
    assert "would be sent" in cli("dlq", "replay", "--all", "--topic", OURS, "--dry-run").stdout
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM letter_replays")).scalar_one() == 0


def test_a_neighbour_s_topic_is_not_written_to(letters: dict[str, str], cli: Cli) -> None:
    """Whoever else reads there would get the message again; only --force does it."""
    result = cli("dlq", "replay", letters["text"], letters["theirs"], "--dry-run")
    assert result.exit_code == 1
    assert f"{THEIRS}: not ours to write" in result.stderr
    assert cli("dlq", "replay", letters["theirs"], "--dry-run", "--force").exit_code == 0


@pytest.mark.parametrize(
    "words", [[], ["--all"], ["--topic", OURS], ["x", "--topic", OURS], ["x", "--all", "--topic", OURS]]
)
def test_which_letters_must_be_clear(words: list[str], engine: sa.Engine, cli: Cli) -> None:
    """Either some by id, or all of a topic."""
    result = cli("dlq", "replay", *words)
    assert (result.exit_code, result.stderr) == (2, "expected LETTER..., or --all with --topic TOPIC\n")
