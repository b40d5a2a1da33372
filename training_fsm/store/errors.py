"""Driver errors become domain errors here, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from training_fsm.domain.errors import Conflict, OutsideUnavailable

_CONFLICTS = frozenset({"23505", "40001", "40P01"})  # unique violation, serialization failure, deadlock
_AWAY_CLASSES = frozenset({"08", "53", "57", "58"})  # connection, resources (a full disk), intervention, its system
_AWAY = frozenset({"25P03", "25006"})  # a transaction idle for too long; a server that became a read-only replica


@contextmanager
def domain_errors() -> Iterator[None]:
    """Raises Conflict where another writer was first, OutsideUnavailable where Postgres is away."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state in _CONFLICTS:
            raise Conflict(str(error.orig)) from error
        if _away(state, error.orig):
            raise OutsideUnavailable("postgres", str(error.orig).strip()) from error
        raise


def is_database_fault(error: Exception) -> bool:
    """Whether the database failed in a way that what was to be stored cannot have caused: trying again may help."""
    blamed = (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.ProgrammingError)
    return isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError) and not isinstance(error, blamed)


def _away(state: str | None, error: BaseException | None) -> bool:
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state[:2] in _AWAY_CLASSES or state in _AWAY
