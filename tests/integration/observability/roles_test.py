"""Orchestrator and worker as processes: what they show, and what they write."""

import json
import os
import re
import signal
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from training_fsm.domain.commands import CancelRun
from training_fsm.domain.run import Run
from training_fsm.local.broker import Broker
from training_fsm.messaging.command_sender import send_command
from training_fsm.settings import load_settings


def _metric(text: str, name: str) -> float | None:
    """The value of a sample without labels, or with these."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


def _events(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT count(*) FROM events")).scalar_one()


def _ready(role) -> bool:
    return bool(role.said("health and metrics")) and role.get("/readyz")[0] == 200


def test_orchestrator_shows_itself(place, broker: Broker) -> None:
    """Live and ready once it serves; it leads the relay, and counts the command that it refuses."""
    place.variables["TRAINING_FSM_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
    role = place.start("orchestrator")
    role.wait(_ready)
    role.wait(lambda role: role.said("relay leads"))
    status, body = role.get("/healthz")
    assert status == 200
    assert json.loads(body)["checks"].keys() == {"intake", "asker", "watch", "relay"}
    ready = json.loads(role.get("/readyz")[1])
    assert ready["role"] == "orchestrator"
    assert ready["checks"].keys() == {"postgres", "kafka", "topics"}
    settings = load_settings(place.home).model_copy(
        update={
            "bootstrap_servers": broker.bootstrap_servers,
            "topic_prefix": place.variables["TRAINING_FSM_TOPIC_PREFIX"],
        }
    )
    send_command(settings, CancelRun(run_id="nobody", actor="test"))
    refused = 'training_fsm_last_hour_commands{outcome="refused"}'
    role.wait(lambda role: _metric(role.get("/metrics")[1], refused) == 1)
    assert _metric(role.get("/metrics")[1], "training_fsm_relay_leads") == 1
    # The log holds letters, too, that other tests left on the neighbours' topics.
    role.wait(lambda role: _metric(role.get("/metrics")[1], "training_fsm_events_total") == _events(place.engine) > 0)
    role.wait(lambda role: _metric(role.get("/metrics")[1], "training_fsm_relay_lag_events") == 0)
    assert role.process.popen.poll() is None
    role.process.stop()
    assert all(line["role"] == "orchestrator" for line in role.lines())


def test_outage_of_postgres_leaves_an_orchestrator_alive(place, broker: Broker) -> None:
    """Nobody who is started again would help: /healthz stays, /readyz says what is away, and all of it as JSON."""
    place.variables["TRAINING_FSM_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
    role = place.start("orchestrator")
    role.wait(_ready)
    place.proxy.cut()
    role.wait(lambda role: _metric(role.get("/metrics")[1], 'training_fsm_service_reached{service="postgres"}') == 0)
    role.wait(lambda role: role.said("waiting") or role.said("relay starts again"))
    assert role.get("/healthz")[0] == 200
    assert "not now" in json.loads(role.get("/readyz")[1])["checks"]["postgres"]["says"]
    place.proxy.open = True
    role.wait(lambda role: _metric(role.get("/metrics")[1], 'training_fsm_service_reached{service="postgres"}') == 1)
    role.process.stop()
    assert role.process.popen.returncode == 0
    assert {"warning", "info"} <= {line["level"] for line in role.lines()}


def test_orchestrator_that_waits_for_its_services_is_live_and_not_ready(place, broker: Broker) -> None:
    """Started before Postgres is up, it serves health from the start on."""
    place.variables["TRAINING_FSM_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
    place.proxy.cut()
    role = place.start("orchestrator")
    role.wait(lambda role: role.said("health and metrics") and role.said("waiting"))
    status, body = role.get("/healthz")
    assert (status, list(json.loads(body)["checks"])) == (200, ["start"])
    status, body = role.get("/readyz")
    assert (status, json.loads(body)["checks"]["postgres"]["ok"]) == (503, False)
    assert _metric(role.get("/metrics")[1], "training_fsm_relay_leads") == 0
    place.proxy.open = True
    role.wait(_ready)


def test_worker_shows_its_run_and_writes_its_id_on_every_line(place, live: Callable[..., Run], mlflow_server) -> None:
    """Idle, ready and not busy; then at work on a run, whose id is on every line until the work ends."""
    place.variables["TRAINING_FSM_MLFLOW_TRACKING_URI"] = mlflow_server.url
    role = place.start("worker", TRAINING_FSM_LEASE_S="5", TRAINING_FSM_ATTEMPTS_MAX="1")
    role.wait(_ready, timeout_s=120)
    assert json.loads(role.get("/healthz")[1])["checks"].keys() == {"main"}
    text = role.get("/metrics")[1]
    assert _metric(text, "training_fsm_worker_busy") == 0
    assert _metric(text, "training_fsm_worker_child_up") == 1
    live(place.engine, "run-1", until=4)
    role.wait(lambda role: 'training_fsm_worker_ended_runs_total{state="FAILED"} 1.0' in role.get("/metrics")[1])
    role.process.stop()
    lines = role.lines()
    claimed = next(number for number, line in enumerate(lines) if line["event"] == "run claimed")
    ended = next(number for number, line in enumerate(lines) if line["event"] == "run_failed")
    assert ended > claimed
    assert {line.get("run_id") for line in lines[claimed : ended + 1]} == {"run-1"}
    assert all("run_id" not in line for line in lines[:claimed])
    assert all(line["role"] == "worker" for line in lines)


def test_worker_whose_child_dies_is_not_ready(place, mlflow_server) -> None:
    """A worker is ready with a child that lives; when an idle one dies, with the next one."""
    place.variables["TRAINING_FSM_MLFLOW_TRACKING_URI"] = mlflow_server.url
    role = place.start("worker")
    role.wait(_ready, timeout_s=120)
    says = json.loads(role.get("/readyz")[1])["checks"]["child"]["says"]
    os.kill(int(says.removeprefix("process ")), signal.SIGKILL)
    role.wait(lambda role: len(role.said("ready for a run")) == 2, timeout_s=120)
    again = json.loads(role.get("/readyz")[1])["checks"]["child"]
    assert again["ok"]
    assert again["says"] != says


def test_worker_outlives_children_that_do_not_become_ready(place, mlflow_server) -> None:
    """One that hangs and a later one that dies are replaced: the worker lives, is not ready, and then is again."""
    place.variables["TRAINING_FSM_MLFLOW_TRACKING_URI"] = mlflow_server.url
    store = place.home / "feast" / "feature_store.yaml"
    os.mkfifo(store)  # who opens it waits for a writer
    role = place.start("worker", TRAINING_FSM_CHILD_SILENCE_S="5")
    role.wait(lambda role: role.said("another child is started"), timeout_s=120)
    hung = role.said("another child is started")[0]
    assert "not ready after 5 s" in str(hung["error"])
    assert "in warm_up" in str(hung["error"]), "it says where it hangs"
    assert role.get("/readyz")[0] == 503
    store.unlink()
    role.wait(_ready)

    store.write_text("no: yaml: at all")
    before = len(role.said("another child is started"))
    os.kill(int(json.loads(role.get("/readyz")[1])["checks"]["child"]["says"].removeprefix("process ")), signal.SIGKILL)
    role.wait(lambda role: len(role.said("another child is started")) >= before + 2)
    first, second = role.said("another child is started")[before : before + 2]
    assert "exit code 1 before it was ready" in str(first["error"])
    assert (first["pause_s"], second["pause_s"]) == (1, 2)
    assert (role.get("/healthz")[0], role.get("/readyz")[0]) == (200, 503)
    store.unlink()
    role.wait(_ready)
    assert role.process.popen.poll() is None


def test_worker_whose_first_child_dies_of_an_error_ends(place, mlflow_server) -> None:
    """What is broken from the start is seen at once: a restart would not help."""
    place.variables["TRAINING_FSM_MLFLOW_TRACKING_URI"] = mlflow_server.url
    (place.home / "feast" / "feature_store.yaml").write_text("no: yaml: at all")
    role = place.start("worker")
    role.process.popen.wait(120)
    assert role.process.popen.returncode == 1
    last = role.lines()[-1]
    assert (last["event"], last["level"]) == ("role ends", "critical")
    assert "before it was ready" in str(last["error"])
    assert "mapping values are not allowed here" in str(last["error"])


@pytest.mark.parametrize("words", [("orchestrator",), ("worker",)], ids=lambda words: words[0])
def test_what_ends_a_role_is_a_line_of_json(place, broker: Broker, words: tuple[str, ...]) -> None:
    """Of a role that finds a database of another version, the last line says so, and the exit code is 1."""
    place.variables["TRAINING_FSM_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
    with place.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    role = place.start(*words)
    role.process.popen.wait(60)
    assert role.process.popen.returncode == 1
    last = role.lines()[-1]
    assert (last["event"], last["level"], last["role"]) == ("role ends", "critical", words[0])
    assert "training-fsm migrate" in str(last["error"])
