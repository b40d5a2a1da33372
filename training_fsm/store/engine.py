"""Connections to Postgres, with the limits that keep one stuck client from stopping the others."""

import sqlalchemy as sa

APPEND_LOCK = 0x74667366  # every appender shares it; the relay takes it alone for a moment
RELAY_LEADER_LOCK = 0x74667367
ALIASES_LOCK = 0x74667369
HOUSEKEEPING_LOCK = 0x7466736A

NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's limits on a network that is silent: half a minute instead of hours."""


def make_engine(url: str, *, application_name: str) -> sa.Engine:
    """An engine for psycopg 3: UTC, and no transaction left open for more than a minute."""
    options = "-c timezone=UTC -c idle_in_transaction_session_timeout=60000"
    arguments = {"application_name": application_name, "options": options, **NETWORK}
    return sa.create_engine(url, connect_args=arguments, pool_size=5, max_overflow=10, pool_pre_ping=True)
