"""What README and docs tell people to type does what they say."""

import re
import uuid
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import make_url

from training_fsm.domain.commands import RequestTraining
from training_fsm.domain.inbound import CommandReceived
from training_fsm.local.broker import Broker
from training_fsm.messaging.command_listener import hear_command
from training_fsm.messaging.message import from_kafka
from training_fsm.messaging.topics import create_missing

ROOT = Path(__file__).parents[3]


def _blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_python_snippet_sends_a_command(broker: Broker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's producer sends what the orchestrator hears as a request for training."""
    (snippet,) = _blocks("README.md", "python")
    topic = f"{topic_prefix}requested.train-model"
    create_missing(AdminClient({"bootstrap.servers": broker.bootstrap_servers}), (topic,), 1, 1)
    monkeypatch.chdir(ROOT)
    snippet = snippet.replace("localhost:9092", broker.bootstrap_servers).replace("requested.train-model", topic)
    exec(compile(snippet, "README.md", "exec"), {})
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": str(uuid.uuid4())})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    heard = hear_command(from_kafka(message))
    assert isinstance(heard, CommandReceived), heard
    assert isinstance(heard.command, RequestTraining)
    assert heard.command.run_id == "my-first-run"


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md", "docs/failures.md"])
def test_sql_runs(page: str, migrated_database_url: str) -> None:
    """Every statement that people are told runs on the newest schema."""
    url = make_url(migrated_database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    statements = [line for block in _blocks(page, "sql") for line in block.split(";") if line.strip()]
    assert statements
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
