"""What commands share: the home folder, the settings, and the way to the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training_fsm.cli.errors import BadInput, NotSo

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from training_fsm.settings import Settings
    from training_fsm.store.audit_reads import PostgresAuditLog

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the local installation; services.json in it tells where things are."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_URL_WANTED = "setting database_url: expected a URL such as postgresql+psycopg://user@host:5432/database"

NO_TABLES, NO_COLUMN, NO_RIGHT = "42P01", "42703", "42501"


def settings_of(ctx: typer.Context, home: Path | None = None) -> "Settings":
    """The settings of this process; `--home` behind the command wins over the one before it."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from training_fsm.domain.explain import explain
    from training_fsm.settings import load_settings

    chosen = home or ctx.find_root().obj
    try:
        return load_settings(chosen if isinstance(chosen, Path) else None)
    except ValidationError as error:
        raise BadInput(*(f"setting {line}" for line in explain(error))) from error
    except (SettingsError, ValueError) as error:
        raise BadInput(f"settings: {error}") from error


@contextmanager
def opened_log(settings: "Settings") -> Iterator["PostgresAuditLog"]:
    """The reading side of the store. Raises NotSo that says where Postgres was looked for, and what helps."""
    from training_fsm.store.audit_reads import PostgresAuditLog

    with opened_database(settings) as engine:
        yield PostgresAuditLog(engine)


@contextmanager
def opened_database(settings: "Settings") -> Iterator["Engine"]:
    """Postgres. Raises NotSo that says where it was looked for, and what helps."""
    import sqlalchemy as sa
    from pydantic import ValidationError

    from training_fsm.domain.errors import OutsideUnavailable
    from training_fsm.domain.explain import explain
    from training_fsm.store.engine import make_engine

    try:
        url = sa.make_url(settings.database_url)
    except sa.exc.ArgumentError as error:
        raise BadInput(_URL_WANTED) from error
    if url.drivername != "postgresql+psycopg":
        raise BadInput(_URL_WANTED)
    engine = make_engine(settings.database_url, application_name="training-fsm-cli")
    where = f"{url.host or 'the local socket'}:{url.port or 5432}, database {url.database}"
    try:
        yield engine
    except OutsideUnavailable as error:
        if error.service != "postgres":
            raise
        words = " ".join(error.words.split())
        hint = "`training-fsm up` starts everything on this machine; TRAINING_FSM_DATABASE_URL names another place"
        raise NotSo(f"postgres at {where} does not answer: {words}", hint) from error
    except sa.exc.DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state in (NO_TABLES, NO_COLUMN):
            hint = "`training-fsm migrate` makes them"
            raise NotSo(f"postgres at {where} has no tables of this version; {hint}") from error
        if state == NO_RIGHT or isinstance(error, sa.exc.OperationalError):
            raise NotSo(f"postgres at {where} says: {str(error.orig).strip()}") from error
        raise
    except ValidationError as error:
        words = (
            f"postgres at {where} holds what this version of training-fsm cannot read; is a newer one at work there?"
        )
        raise NotSo(words, *(f"  {line}" for line in explain(error))) from error
    finally:
        engine.dispose()


def resolved(log: "PostgresAuditLog", beginning: str) -> str:
    """The id of the one run that begins so. Raises NotSo where there is none, BadInput where there are several."""
    candidates = log.matching(beginning)
    if not candidates:
        raise NotSo(f"there is no run {beginning}")
    if len(candidates) > 1:
        raise BadInput(f"{beginning} is the beginning of several runs:", *(f"  {run_id}" for run_id in candidates))
    return candidates[0]
