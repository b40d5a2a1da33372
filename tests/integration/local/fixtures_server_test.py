"""The shared fixtures give what their names promise."""

import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from sqlalchemy import make_url

from training_fsm.local.broker import Broker

_URLS: list[str] = []


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_database(database_url: str, turn: int) -> None:
    """A table made in one test is not there in the next."""
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE once (id int)")
    assert database_url not in _URLS
    _URLS.append(database_url)


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_a_migrated_database(migrated_database_url: str, turn: int) -> None:
    """The schema is there in each copy, and only the schema."""
    url = make_url(migrated_database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
    assert migrated_database_url not in _URLS
    _URLS.append(migrated_database_url)


def test_the_database_is_utf8_in_utc_and_its_role_no_superuser(database_url: str) -> None:
    """Encoding, time zone and rights are those of a careful cluster."""
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT current_setting('server_encoding'), current_setting('TimeZone'), current_setting('fsync'),"
            " datcollate, current_setting('is_superuser') FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert found == ("UTF8", "UTC", "on", "C", "off")


def test_the_broker_answers(broker: Broker) -> None:
    """The session's broker, whichever it is, lists itself."""
    brokers = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=10).brokers
    assert [f"{one.host}:{one.port}" for one in brokers.values()] == [broker.bootstrap_servers]
