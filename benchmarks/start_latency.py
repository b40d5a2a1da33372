"""How long an idle worker lets a run wait: from preprocess's message to the events that it leads to.

    python -m benchmarks.start_latency [RUNS]

Times from the message's own timestamp in Kafka to the events' times in Postgres, on one machine and so one clock.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from confluent_kafka import Consumer
from rich.console import Console
from rich.table import Table

from training_fsm.domain.commands import RequestTraining
from training_fsm.domain.request import TrainingRequest
from training_fsm.local.stack import LocalStack, StackOptions
from training_fsm.messaging.command_sender import send_command
from training_fsm.settings import Settings
from training_fsm.store.audit_reads import PostgresAuditLog
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog

MEASURED = ("features_ready", "run_claimed", "data_frozen", "training_started")
REQUEST = {
    "mode": "from_scratch",
    "model": "latency",
    "symbol": "EURUSD",
    "base_timeframe": "1h",
    "timeframe": "4h",
    "range": {"start": "2017-01-01T00:00:00Z", "end": "2018-01-01T00:00:00Z"},
    "features": {
        "semver": "1.0.0",
        "feature_definitions": [
            {"name": "close_price"},
            {"name": "rsi", "raw_parameter_sets": [{"type": "rsi", "enabled": True, "length": 14}]},
            {"name": "log_return", "raw_parameter_sets": [{"type": "log_return", "enabled": True, "length": 1}]},
        ],
    },
    "data": {"columns": {"close": "close_price_value"}},
    "agent": {"total_timesteps": 512, "hyperparameters": {"n_steps": 256}},
}


def main() -> None:
    """Start everything, let runs come one after the other while a worker is idle, print a table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory(prefix="training-fsm-") as folder:
        stack = LocalStack(StackOptions(home=Path(folder)), print)
        stack.start()
        try:
            rows = _measure(stack.settings, Path(folder), runs)
        finally:
            stack.stop()
    table = Table("from preprocess's message to", "median ms", "min ms", "max ms")
    for name in MEASURED:
        times = [row[name] for row in rows]
        table.add_row(name, *(f"{value:.0f}" for value in (statistics.median(times), min(times), max(times))))
    Console().print(table)


def _measure(settings: Settings, home: Path, runs: int) -> list[dict[str, float]]:
    engine = make_engine(settings.database_url, application_name="benchmark")
    log, reads = PostgresEventLog(engine), PostgresAuditLog(engine)
    request = TrainingRequest.model_validate_json(json.dumps(REQUEST))
    answered: dict[str, int] = {}
    for number in range(runs):
        _until(partial(_ready_again, home, number))
        time.sleep(1)
        run_id = f"latency-{number}"
        send_command(settings, RequestTraining(run_id=run_id, request=request))
        _until(partial(_ended, log, run_id))
    _read_answers(settings, answered, runs)
    rows = []
    for number in range(runs):
        history = list(reads.history(f"latency-{number}"))
        run = log.load(f"latency-{number}")
        assert run is not None
        assert run.features is not None
        came = answered[run.features.request_id]
        rows.append({x.type: x.occurred_at.timestamp() * 1000 - came for x in history if x.type in MEASURED})
    engine.dispose()
    return rows


def _ready_again(home: Path, runs_before: int) -> bool:
    return (home / "logs" / "worker-1.log").read_text().count("ready for a run") > runs_before


def _ended(log: PostgresEventLog, run_id: str) -> bool:
    run = log.load(run_id)
    return run is not None and run.ended


def _read_answers(settings: Settings, answered: dict[str, int], runs: int) -> None:
    """When each answer of preprocess was produced, by request id."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "benchmark",
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
        }
    )
    consumer.subscribe(["completed.preprocess-data.offline"])
    while len(answered) < runs:
        message = consumer.poll(1)
        if message is not None and not message.error():
            answered[json.loads(message.value() or b"")["request_id"]] = message.timestamp()[1]
    consumer.close()


def _until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


if __name__ == "__main__":
    main()
