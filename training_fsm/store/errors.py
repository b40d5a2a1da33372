"""Driver errors become domain errors here, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from training_fsm.domain.errors import Conflict, OutsideUnavailable

_CONFLICTS = frozenset({"23505", "40001", "40P01"})  # unique violation, serialization failure, deadlock


@contextmanager
def domain_errors() -> Iterator[None]:
    """Raises Conflict where another writer was first, OutsideUnavailable where Postgres is away."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state in _CONFLICTS:
            raise Conflict(str(error.orig)) from error
        away = state is None or state[:2] in ("08", "57") or state == "25P03"
        if away and isinstance(error.orig, psycopg.OperationalError):
            raise OutsideUnavailable("postgres", str(error.orig).strip()) from error
        raise
