"""Dead letters sent again, by the command line, over a real broker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from training_fsm.cli.app import app
from training_fsm.messaging.message import Message, dead_letter
from training_fsm.ports import Cause
from training_fsm.store.event_log import PostgresEventLog

if TYPE_CHECKING:
    from conftest import Station

Cli = Callable[..., Result]

COMMAND = b'{"type": "cancel_run", "why": "replayed"}'


@pytest.fixture
def cli(station: "Station", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with the station's settings."""
    settings = station.settings
    monkeypatch.setenv("TRAINING_FSM_HOME", str(tmp_path))
    monkeypatch.setenv("TRAINING_FSM_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("TRAINING_FSM_BOOTSTRAP_SERVERS", settings.bootstrap_servers)
    monkeypatch.setenv("TRAINING_FSM_TOPIC_PREFIX", settings.topic_prefix)
    return lambda *words: CliRunner().invoke(app, list(words))


def _letter(station: "Station", message: Message) -> str:
    """Put a message among the dead letters, as an earlier build would that could not read it."""
    letter = dead_letter(message, "an earlier build could not read it")
    with PostgresEventLog(station.engine).begin() as unit:
        unit.dead_letter(letter, Cause("orchestrator", "1", "1"))
    return letter.letter_id


def test_a_letter_is_read_again_as_it_came(station: "Station", cli: Cli) -> None:
    """Key, headers, value and partition are the original's; the listener finds the command under its own id."""
    headers = (("ce_id", b"command-7"), ("ce_source", b"test"), ("trace", b"\xff\x00"))
    letter_id = _letter(station, Message(station.topics.requested, 2, 11, 5, b"run-x", COMMAND, headers))
    sent = cli("dlq", "replay", letter_id[:10], "--json")
    assert sent.exit_code == 0, sent.output
    (landed,) = json.loads(sent.stdout)
    with station.reader(station.topics.requested) as reader:
        (message,) = reader.until(bool)
    assert (message.partition(), message.offset()) == (landed["partition"], landed["offset"]) == (2, landed["offset"])
    assert (message.key(), message.value()) == (b"run-x", COMMAND)
    assert tuple(message.headers()) == headers
    with station.orchestrator():
        outcome = station.wait(lambda: station.outcome("command-7"))
    assert outcome == ("refused", "run_id: there is no run run-x")


def test_a_replay_is_on_record(station: "Station", cli: Cli) -> None:
    """Who, when and where it landed; and which letter it became where it cannot be read this time either."""
    letter_id = _letter(station, Message(station.topics.requested, 0, 3, 5, None, b"not json"))
    with station.orchestrator():
        assert cli("dlq", "replay", letter_id).exit_code == 0
        station.wait(lambda: station.rows("SELECT FROM dead_letters"), lambda rows: len(rows) == 2)
    listed = {one["letter_id"]: one for one in json.loads(cli("dlq", "list", "--json").stdout)}
    (replay,) = listed.pop(letter_id)["replays"]
    (again,) = listed
    assert (replay["again"], listed[again]["replays"]) == (again, [])
    assert (replay["partition"], replay["offset"]) == (listed[again]["partition"], listed[again]["offset"])
    assert f"unreadable again: {again[:12]}" in cli("dlq", "show", letter_id).stdout


def test_all_of_a_topic_are_sent_once(station: "Station", cli: Cli) -> None:
    """The oldest first; what has landed is left out the next time, what was asked for by id is sent again."""
    ids = [_letter(station, Message(station.topics.requested, 0, n, 5, b"k", str(n).encode())) for n in range(3)]
    words = ("dlq", "replay", "--all", "--topic", station.topics.requested, "--json")
    assert [one["letter_id"] for one in json.loads(cli(*words).stdout)] == ids
    assert json.loads(cli(*words).stdout) == []
    assert json.loads(cli("dlq", "replay", ids[1], "--json").stdout)[0]["letter_id"] == ids[1]
    with station.reader(station.topics.requested) as reader:
        values = [message.value() for message in reader.until(lambda messages: len(messages) == 4)]
    assert values == [b"0", b"1", b"2", b"1"]


def test_a_replay_that_kafka_does_not_confirm_stays_on_record(
    station: "Station",
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have arrived: the list says so, and `--all` takes it once more."""
    letter_id = _letter(station, Message(station.topics.requested, 0, 3, 5, None, b"x"))
    monkeypatch.setattr("training_fsm.messaging.confirmed_producer.CONNECT_TIMEOUT_S", 1)
    with monkeypatch.context() as away:
        away.setenv("TRAINING_FSM_BOOTSTRAP_SERVERS", "127.0.0.1:1")
        failed = cli("dlq", "replay", letter_id)
    assert failed.exit_code == 1
    assert "127.0.0.1:1 does not answer" in failed.stderr
    assert "0 of 1 were sent" in failed.stderr
    assert "not confirmed: it may have arrived" in cli("dlq", "show", letter_id).stdout
    assert len(json.loads(cli("dlq", "replay", "--all", "--topic", station.topics.requested, "--json").stdout)) == 1


def test_only_a_force_writes_onto_another_topic(station: "Station", cli: Cli) -> None:
    """What came from another prefix's topic is not ours to send; a topic that is not there is named."""
    letter_id = _letter(station, Message("nowhere.train-model", 0, 3, 5, None, b"x"))
    assert cli("dlq", "replay", letter_id).exit_code == 1
    forced = cli("dlq", "replay", letter_id, "--force")
    assert forced.exit_code == 1
    assert "has no topic nowhere.train-model yet\n" in forced.stderr
    with station.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM letter_replays")).scalar_one() == 1
