import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from typer.testing import Result

from training_fsm.cli import watch
from training_fsm.domain import events as e
from training_fsm.domain.commands import RUN_ID, CancelRun, RequestTraining
from training_fsm.domain.facts import Failure, Progress
from training_fsm.domain.inbound import CommandReceived, Inbound
from training_fsm.domain.policy import Policy
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.local.broker import Broker
from training_fsm.messaging.command_listener import hear_command
from training_fsm.messaging.command_sender import actor
from training_fsm.messaging.message import from_kafka
from training_fsm.messaging.topics import Topics, create_missing
from training_fsm.ports import Cause
from training_fsm.service.training_orchestration_service import TrainingOrchestrationService
from training_fsm.store.event_log import Lease, PostgresEventLog

Cli = Callable[..., Result]
Live = Callable[..., Run]
Fields = dict[str, object]


@pytest.fixture
def topic(broker: Broker, topic_prefix: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commands' topic of this test, which the command line is told of."""
    monkeypatch.setenv("TRAINING_FSM_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("TRAINING_FSM_TOPIC_PREFIX", topic_prefix)
    name = Topics.with_prefix(topic_prefix).requested
    create_missing(AdminClient({"bootstrap.servers": broker.bootstrap_servers}), (name,), 1, 1)
    return name


@pytest.fixture
def arrivals(broker: Broker, topic: str) -> Iterator[Callable[[], Inbound]]:
    """The next command on the topic, as the orchestrator hears it."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])

    def arrived() -> Inbound:
        message = consumer.poll(30)
        assert message is not None, "no command came"
        assert message.error() is None
        return hear_command(from_kafka(message))

    yield arrived
    consumer.close()


@pytest.fixture
def request_file(request_fields: Fields, tmp_path: Path) -> str:
    """A file with a request."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request_fields))
    return str(path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls every twentieth of a second."""
    monkeypatch.setattr(watch, "POLL_S", 0.05)


def _orchestrator(engine: sa.Engine) -> TrainingOrchestrationService:
    class NoIngest:
        def request_features(self, *_: object) -> object:
            raise AssertionError("nobody asks")

    return TrainingOrchestrationService(PostgresEventLog(engine), Policy(), NoIngest(), lambda: 0.0)


def test_submit_sends_what_the_orchestrator_understands(
    engine: sa.Engine, cli: Cli, request_file: str, arrivals: Callable[[], Inbound]
) -> None:
    """The id that is printed is the run's; the command on Kafka is the request, defaults filled in."""
    result = cli("run", "submit", request_file)
    assert result.exit_code == 0, result.output
    run_id = result.stdout.strip()
    assert re.fullmatch(RUN_ID, run_id)
    heard = arrivals()
    assert isinstance(heard, CommandReceived)
    assert isinstance(heard.command, RequestTraining)
    assert heard.command.run_id == run_id
    assert heard.command.request.agent.total_timesteps == 10_000
    assert heard.source.startswith(f"training-fsm-cli/{actor()}@")
    _orchestrator(engine).handle([heard])
    assert json.loads(cli("run", "show", run_id, "--json").stdout)["state"] == "AWAITING_FEATURES"


def test_a_command_is_a_cloudevent_of_the_family(broker: Broker, topic: str, cli: Cli, request_file: str) -> None:
    """Binary CloudEvents headers, the family's event_type, and the run id as key."""
    sent = json.loads(cli("run", "submit", request_file, "--json").stdout)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, sent["partition"], sent["offset"])])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    assert message.key() == sent["run_id"].encode()
    assert dict(message.headers() or ()) == {
        "ce_specversion": b"1.0",
        "ce_id": sent["command_id"].encode(),
        "ce_source": sent["source"].encode(),
        "ce_type": b"request_training",
        "content-type": b"application/json",
        "event_type": b"request_training",
    }


def test_submit_takes_the_run_id_of_option_or_file(
    cli: Cli, request_fields: Fields, arrivals: Callable[[], Inbound]
) -> None:
    """Either will do; two different ones are refused before anything is sent."""
    text = json.dumps(request_fields | {"run_id": "mine", "type": "request_training"})
    sent = json.loads(cli("run", "submit", "-", "--json", stdin=text).stdout)
    heard = arrivals()
    assert isinstance(heard, CommandReceived)
    assert (sent["run_id"], sent["command_id"], sent["source"]) == ("mine", heard.command_id, heard.source)
    assert heard.command.run_id == "mine"
    differing = cli("run", "submit", "-", "--run-id", "yours", stdin=text)
    assert (differing.exit_code, differing.stdout) == (2, "")
    assert cli("run", "submit", "-", "--run-id", "no/slash", stdin=text).exit_code == 2


def test_submit_does_not_make_the_topic(
    broker: Broker, cli: Cli, request_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic made by accident would have one partition: its maker is named instead."""
    monkeypatch.setenv("TRAINING_FSM_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("TRAINING_FSM_TOPIC_PREFIX", "nobody-made-it.")
    for _ in range(2):
        result = cli("run", "submit", request_file)
        assert result.exit_code == 1
        assert "has no topic nobody-made-it.requested.train-model" in result.stderr


def test_a_refused_submit_says_why(
    engine: sa.Engine, live: Live, cli: Cli, request_file: str, arrivals: Callable[[], Inbound], quick: None
) -> None:
    """With --wait the orchestrator's reason comes back, and the exit code is 1."""
    live(engine, "taken", 2)
    orchestrator = threading.Thread(target=lambda: _orchestrator(engine).handle([arrivals()]))
    orchestrator.start()
    result = cli("run", "submit", request_file, "--run-id", "taken", "--wait")
    orchestrator.join()
    assert result.exit_code == 1
    assert "refused: run_id: taken exists already, in state AWAITING_FEATURES" in result.stderr


def test_a_submit_that_waits_ends_with_its_run(
    engine: sa.Engine, cli: Cli, request_file: str, arrivals: Callable[[], Inbound], quick: None
) -> None:
    """Events are shown as they come; a failed run gives exit code 1 and its reason."""

    def fate() -> None:
        _orchestrator(engine).handle([arrivals()])
        reason = Failure(kind="deadline", words="preprocess did not report", service="preprocess")
        with PostgresEventLog(engine).begin() as unit:
            failed = e.RunFailed(reason=reason, failed_from=State.AWAITING_FEATURES)
            unit.append("mine", [failed], Cause("orchestrator", "1", "1"))

    orchestrator = threading.Thread(target=fate)
    orchestrator.start()
    result = cli("run", "submit", request_file, "--run-id", "mine", "--wait")
    orchestrator.join()
    assert result.exit_code == 1
    assert "run mine ended in FAILED: preprocess did not report" in result.stderr
    assert "AWAITING_FEATURES → FAILED" in result.stdout


@pytest.mark.parametrize(
    ("words", "type_", "fields"),
    [
        (("cancel",), "cancel_run", {"why": ""}),
        (("pause", "--why", "night"), "pause_run", {"why": "night"}),
        (("resume", "--why", "morning"), "resume_run", {"why": "morning"}),
        (("retry", "--why", "data is there"), "retry_run", {"why": "data is there"}),
        (("extend", "4096", "--why", "more"), "extend_run", {"why": "more", "additional_timesteps": 4096}),
        (("override", "--why", "for paper"), "override_rejection", {"why": "for paper"}),
    ],
)
def test_each_order_goes_out_signed(
    words: tuple[str, ...],
    type_: str,
    fields: Fields,
    engine: sa.Engine,
    live: Live,
    cli: Cli,
    arrivals: Callable[[], Inbound],
) -> None:
    """A shortened id is sent whole, with the operating system's user as actor, and nothing that was not asked."""
    live(engine, "run-one", 2)
    result = cli("run", words[0], "run-o", *words[1:])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "run-one\n", "")
    heard = arrivals()
    assert isinstance(heard, CommandReceived)
    assert heard.command.type == type_
    assert heard.command.model_dump() == {"run_id": "run-one", "actor": actor()} | fields


@pytest.mark.parametrize(
    ("words", "exit_code", "expected"),
    [
        *(((name, "unknown"), 1, "there is no run unknown") for name in ("cancel", "pause", "resume", "retry")),
        (("extend", "unknown", "4096"), 1, "there is no run unknown"),
        (("override", "unknown", "--why", "x"), 1, "there is no run unknown"),
        (("extend", "run-one", "0"), 2, "additional_timesteps: expected greater than 0, got 0"),
        (("extend", "run-one", "10000000001"), 2, "additional_timesteps: expected less than or equal to 10000000000"),
        (("extend", "run-one", "many"), 2, "Invalid value for 'STEPS'"),
        (("extend", "run-one", "-5"), 2, "No such option: -5"),
        (("override", "run-one"), 2, "Missing option '--why'"),
        (("override", "run-one", "--why", ""), 2, "why: expected at least 1 character"),
        (("pause", "run-one", "--why", "x" * 2001), 2, "why: expected at most 2000 characters"),
    ],
)
def test_an_order_that_makes_no_sense_is_not_sent(
    words: tuple[str, ...],
    exit_code: int,
    expected: str,
    engine: sa.Engine,
    live: Live,
    cli: Cli,
    arrivals: Callable[[], Inbound],
) -> None:
    """One line says what is wrong; the next command is the first that the topic has."""
    live(engine, "run-one", 2)
    result = cli("run", *words)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert sum(expected in line for line in result.stderr.splitlines()) == 1
    cli("run", "cancel", "run-one", "--why", "the first")
    heard = arrivals()
    assert isinstance(heard, CommandReceived)
    assert heard.command == CancelRun(run_id="run-one", actor=actor(), why="the first")


def test_a_shortened_id_must_be_unique(engine: sa.Engine, live: Live, cli: Cli) -> None:
    """Several candidates are listed; none at all is said too."""
    live(engine, "run-one", 2)
    live(engine, "run-two", 2)
    several = cli("run", "show", "run-")
    assert several.exit_code == 2
    assert {"  run-one", "  run-two"} <= set(several.stderr.splitlines())
    nothing = cli("run", "show", "x")
    assert (nothing.exit_code, nothing.stderr) == (1, "there is no run x\n")


def test_show_tells_the_whole_story(engine: sa.Engine, live: Live, cli: Cli) -> None:
    """State, data, splits, warnings, metrics, verdicts and the model's version are on the card."""
    live(engine, "r")
    card = cli("run", "show", "r").stdout
    for expected in (
        "REGISTERED since",
        "step 10,240 of 10,240",
        "0.61 (95% between 0.1 and 1.1)",
        "1,500 rows (14 of warm-up dropped), digest " + "f" * 64,
        "149 test bars, fewer than 252",
        "holds  sharpe: 0.61, at least 0.5 wanted",
        "eurusd-ppo version 3",
    ):
        assert expected in card


def test_show_names_what_failed(engine: sa.Engine, live: Live, cli: Cli) -> None:
    """Service, field, range and detail of a failure are there, without what could steer a terminal."""
    live(engine, "r", 5)
    reason = Failure(
        kind="features_missing",
        words="no rows\x1b[2J",
        service="observation_space_EURUSD_4h",
        field="rsi",
        range="2017",
        detail="last lines",
    )
    tried = e.AttemptFailed(reason=reason, attempt=1, retry_at=datetime.now(UTC))
    failed = e.RunFailed(reason=reason, failed_from=State.TRAINING)
    lease, cause = Lease("r", 1, "worker-1"), Cause("worker-1", "1", "1")
    PostgresEventLog(engine).append_fenced(lease, [tried], cause)
    assert "failed attempts in a row: 1" in cli("run", "show", "r").stdout
    PostgresEventLog(engine).append_fenced(lease, [failed], cause)
    card = cli("run", "show", "r").stdout
    assert "failed attempts before it: 1" in card
    assert "features_missing: no rows�[2J [service observation_space_EURUSD_4h, field rsi, range 2017]" in card
    assert "last lines" in card
    assert "\x1b" not in card


def test_list_shows_state_and_heartbeat(engine: sa.Engine, live: Live, cli: Cli) -> None:
    """A running training shows the step of its last heartbeat, in the table and in JSON."""
    live(engine, "r", 8)
    told = Progress(step=4321, total=10_240, steps_per_s=800, reward=0.5, eta_s=7.5, at=datetime.now(UTC))
    PostgresEventLog(engine).heartbeat(Lease("r", 1, "worker-1"), 60, told)
    assert "4,321 of 10,240" in cli("run", "list").stdout
    assert "mean episode reward 0.5" in cli("run", "show", "r").stdout
    (listed,) = json.loads(cli("run", "list", "--json").stdout)
    assert (listed["run_id"], listed["state"], listed["progress"]["step"]) == ("r", "TRAINING", 4321)
    assert "run" not in listed
    assert cli("run", "list", "--state", "failed").stdout == "no runs\n"


def test_submit_sends_a_continued_request_as_it_is(
    engine: sa.Engine, cli: Cli, arrivals: Callable[[], Inbound]
) -> None:
    """Nothing is filled in on the way: the parent is the worker's to find."""
    text = "mode: continue\nparent: models:/eurusd-ppo/3\nagent: {seed: 1}\n"
    run_id = cli("run", "submit", "-", stdin=text).stdout.strip()
    heard = arrivals()
    assert isinstance(heard, CommandReceived)
    assert isinstance(heard.command, RequestTraining)
    asked = {"mode": "continue", "parent": "models:/eurusd-ppo/3", "agent": {"seed": 1}}
    assert heard.command.request.model_dump(mode="json") == asked
    _orchestrator(engine).handle([heard])
    assert json.loads(cli("run", "show", run_id, "--json").stdout)["state"] == "REQUESTED"


def test_a_run_that_looks_for_its_parent_shows_what_is_known(
    engine: sa.Engine, continued_life: Callable[..., tuple[e.Event, ...]], cli: Cli
) -> None:
    """The model's name as the request says it, a dash for the rest; the card has the parent as it was asked for."""
    with PostgresEventLog(engine).begin() as unit:
        unit.append("child", continued_life("child")[:1], Cause("orchestrator", "1", "1"))
    (row,) = cli("run", "list").stdout.splitlines()[1:]
    assert row.split()[:2] + row.split()[4:] == ["child", "REQUESTED", "eurusd-ppo", "-"]
    card = cli("run", "show", "child").stdout
    assert re.search(r"^continues +models:/eurusd-ppo/3 *$", card, re.MULTILINE)
    assert re.search(r"^model +eurusd-ppo *$", card, re.MULTILINE)
    assert "range" not in card


def test_show_tells_what_a_child_has_of_its_parent(models: None, engine: sa.Engine, cli: Cli) -> None:
    """Parent, line, changes, what was carried over and what not, and the drift are on the card."""
    card = " ".join(cli("run", "show", "run-3").stdout.split())
    for expected in (
        "continues models:/eurusd-ppo/1 ",
        "parent eurusd-ppo/1, at step 10,240, digest " + "d" * 32,
        "lineage generation 1 of the line that began with eurusd-ppo/1",
        "changed agent.seed: 0 -> 3",
        "changed range.end: 2018-01-01T00:00:00Z -> 2018-07-01T00:00:00Z",
        "carried weights, optimizer, steps, reward normalisation",
        "reset generators: agent.seed 0 / 3",
        "step 20,480 of 20,480, the first 10,240 are the parent's",
        "compared: 1 differs, first rsi at 2017-03-01 04:00:00Z: 50.0 -> 51.5",
        "contest against eurusd-ppo/1 on 149 bars: sharpe 0.8 vs 0.61, 2017-11-24 to 2017-12-29",
    ):
        assert expected in card
    of_a_zip = " ".join(cli("run", "show", "run-5").stdout.split())
    assert "parent handmade/7, a Stable-Baselines3 zip, weights only, at step 0" in of_a_zip
    assert re.search(r"changes it has no request that the [0-9]+ fields of this one could differ from", of_a_zip)


def test_history_has_every_event(engine: sa.Engine, live: Live, cli: Cli) -> None:
    """One line an event, its payload when asked for, and the same as JSON."""
    live(engine, "r")
    table = cli("run", "history", "r").stdout
    assert re.search(r"4 .* features_ready +AWAITING_FEATURES → TRAINING +orchestrator", table)
    assert "tracking-1" not in table
    assert "runs:/tracking-1/checkpoints/first" in cli("run", "history", "r", "--payload").stdout
    entries = json.loads(cli("run", "history", "r", "--json").stdout)
    assert [entry["version"] for entry in entries] == list(range(1, 14))
    assert entries[7]["payload"]["step"] == 2048


def test_what_a_newer_version_wrote_is_said_so(engine: sa.Engine, live: Live, cli: Cli) -> None:
    """During an upgrade an older command line shows what it can, and says what it cannot."""
    live(engine, "r", 4)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE events DISABLE TRIGGER USER")
        connection.exec_driver_sql("UPDATE events SET schema_version = 9 WHERE version = 4")
        connection.exec_driver_sql("UPDATE run_heads SET run = replace(run::text, '\"token\"', '\"tocken\"')::json")
    assert "version 9 of this event is newer than this build" in cli("run", "history", "r").stdout
    result = cli("run", "show", "r")
    assert result.exit_code == 1
    assert "tocken: unknown; did you mean token?" in result.stderr


def test_watch_follows_to_the_end(engine: sa.Engine, live: Live, cli: Cli, quick: None) -> None:
    """Events that come while it watches are shown, each once, and a registered model gives exit code 0."""
    live(engine, "r", 8)

    def go_on() -> None:
        time.sleep(0.2)
        log, lease = PostgresEventLog(engine), Lease("r", 1, "worker-1")
        log.append_fenced(lease, [e.TrainingFinished(checkpoint="c", steps=10_240)], Cause("worker-1", "1", "1"))
        registered = e.ModelRegistered(name="eurusd-ppo", version=3, digest="d")
        log.append_fenced(lease, [registered], Cause("worker-1", "1", "1"))

    worker = threading.Thread(target=go_on)
    worker.start()
    result = cli("run", "watch", "r", "--json")
    worker.join()
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["version"] for line in lines] == list(range(1, 11))
    assert lines[-1]["event"] == "model_registered"


def test_watch_shows_lines_to_people(engine: sa.Engine, live: Live, cli: Cli) -> None:
    """Without --json each event is one line with its summary."""
    live(engine, "r")
    lines = cli("run", "watch", "r").stdout.splitlines()
    assert len(lines) == 13
    assert lines[7].split()[0] == "8"
    assert "step 2,048, 1,234 bytes" in lines[7]


def test_an_empty_database_is_told_apart(database_url: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that nobody migrated names the command that does."""
    monkeypatch.setenv("TRAINING_FSM_DATABASE_URL", database_url)
    result = cli("run", "list")
    assert result.exit_code == 1
    assert "training-fsm migrate" in result.stderr


def test_an_absent_database_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was looked for, and what helps; no traceback and no password."""
    monkeypatch.setenv("TRAINING_FSM_DATABASE_URL", "postgresql+psycopg://me:secret@127.0.0.1:1/none")
    result = cli("run", "list")
    assert result.exit_code == 1
    assert "postgres at 127.0.0.1:1, database none does not answer" in result.stderr
    assert "training-fsm up" in result.stderr
    assert "secret" not in result.stderr


def test_an_absent_broker_is_named(cli: Cli, request_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address and librdkafka's reason are there."""
    monkeypatch.setattr("training_fsm.messaging.confirmed_producer.CONNECT_TIMEOUT_S", 1)
    monkeypatch.setenv("TRAINING_FSM_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    result = cli("run", "submit", request_file)
    assert result.exit_code == 1
    assert "kafka: 127.0.0.1:1 does not answer" in result.stderr


def test_a_home_behind_the_command_wins(
    engine: sa.Engine, live: Live, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--home` names the services.json, before the group or behind the command."""
    live(engine, "r", 2)
    monkeypatch.delenv("TRAINING_FSM_DATABASE_URL")
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder, url in (
        (home, engine.url.render_as_string(hide_password=False)),
        (elsewhere, "postgresql+psycopg://n@127.0.0.1:1/n"),
    ):
        folder.mkdir()
        (folder / "services.json").write_text(json.dumps({"database_url": url}))
    assert cli("--home", str(home), "run", "show", "r").exit_code == 0
    assert cli("--home", str(elsewhere), "run", "show", "r").exit_code == 1
    assert cli("--home", str(elsewhere), "run", "show", "r", "--home", str(home)).exit_code == 0
