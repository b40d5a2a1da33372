"""Roles as processes, with a proxy before Postgres that can be cut, and their lines as they wrote them."""

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from training_fsm.local.process import ManagedProcess, start_process
from training_fsm.store.engine import make_engine

WAIT_S = 60


class Proxy:
    """Forwards TCP connections to a port of loopback for as long as it is open."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and every new one."""
        self.open = False
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """For good."""
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self.open:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((client, server))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@dataclass
class Role:
    """A role that runs, logs JSON and serves health."""

    process: ManagedProcess

    def raw_lines(self) -> list[str]:
        """Everything that it wrote to stdout and stderr."""
        return self.process.log.read_text(encoding="utf-8").splitlines()

    def lines(self) -> list[dict[str, object]]:
        """Its whole lines; one that is no JSON fails the test."""
        text = self.process.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def said(self, event: str) -> list[dict[str, object]]:
        """Its lines of an event."""
        return [line for line in self.lines() if line["event"] == event]

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of one of its paths."""
        (served,) = self.said("health and metrics")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{served['port']}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait(self, reached: Callable[["Role"], object], timeout_s: float = WAIT_S) -> None:
        """Until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not reached(self):
            if time.monotonic() > deadline:
                pytest.fail(f"not reached in {timeout_s:g} s; exit {self.process.popen.poll()}\n" + self._end())
            time.sleep(0.1)

    def _end(self) -> str:
        return "\n".join(self.raw_lines()[-20:])


@dataclass
class Place:
    """A migrated database behind a proxy, and the roles of a test."""

    home: Path
    url: str
    proxy: Proxy
    engine: sa.Engine
    stack: ExitStack
    variables: dict[str, str]
    roles: list[Role] = field(default_factory=list)

    def start(self, *words: str, **variables: str) -> Role:
        """Start a role; it is stopped with the test."""
        name = f"{words[0]}-{len(self.roles)}"
        process = start_process(
            name,
            [sys.executable, "-m", "training_fsm", *words, "--home", str(self.home)],
            log=self.home / f"{name}.log",
            env=os.environ | self.variables | variables,
        )
        self.stack.enter_context(process)
        self.roles.append(Role(process))
        return self.roles[-1]


@pytest.fixture
def place(migrated_database_url: str, topic_prefix: str, tmp_path: Path) -> Iterator[Place]:
    """A place of this test's own; nothing runs there yet. Kafka is to be named by the test."""
    with ExitStack() as stack:
        direct = make_url(migrated_database_url)
        assert direct.port is not None
        proxy = Proxy(direct.port)
        stack.callback(proxy.close)
        engine = make_engine(migrated_database_url, application_name="test")
        stack.callback(engine.dispose)
        (tmp_path / "feast").mkdir()
        variables = {
            "TRAINING_FSM_DATABASE_URL": direct.set(port=proxy.port).render_as_string(hide_password=False),
            "TRAINING_FSM_TOPIC_PREFIX": topic_prefix,
            "TRAINING_FSM_TOPIC_PARTITIONS": "2",
            "TRAINING_FSM_FEAST_REPO": str(tmp_path / "feast"),
            "TRAINING_FSM_MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "TRAINING_FSM_LOG_FORMAT": "json",
            "TRAINING_FSM_HTTP_PORT": "0",
        }
        yield Place(tmp_path, migrated_database_url, proxy, engine, stack, variables)
