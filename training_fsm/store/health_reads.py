"""Reads for health and metrics: short, read-only, and ended by the database itself when they take too long."""

import sqlalchemy as sa

from training_fsm.domain.model import Model
from training_fsm.domain.states import State
from training_fsm.store.errors import domain_errors

STATEMENT_TIMEOUT_MS = 2_000

_BOUNDED = sa.text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}")

_RUNS = sa.text(
    """
    WITH heads AS (
        SELECT state, worker, lease_until,
               claimable AND (due_at IS NULL OR due_at <= now) AND (lease_until IS NULL OR lease_until < now) AS due,
               claimable AND due_at > now AND (lease_until IS NULL OR lease_until < now) AS backing_off,
               claimable AND lease_until >= now AS held,
               claimable AND lease_until < now AS silent,
               now - greatest(changed_at, due_at, lease_until) AS waited
        FROM run_heads, (SELECT clock_timestamp() AS now) AS clock
    )
    SELECT state, count(*) AS runs,
           count(*) FILTER (WHERE due) AS due,
           count(*) FILTER (WHERE backing_off) AS backing_off,
           count(*) FILTER (WHERE held) AS held,
           count(*) FILTER (WHERE silent) AS silent,
           coalesce(extract(epoch FROM max(waited) FILTER (WHERE due)), 0)::float AS due_s
    FROM heads GROUP BY state
    """
)

# The open questions are few: the partial index on heads finds them, the streams' index their last question.
_QUESTIONS = sa.text(
    """
    SELECT count(*) AS open, coalesce(extract(epoch FROM clock_timestamp() - min(asked.occurred_at)), 0)::float AS age_s
    FROM run_heads
    CROSS JOIN LATERAL (
        SELECT occurred_at FROM events
        WHERE stream = 'run-' || run_heads.run_id AND type = 'features_requested' ORDER BY version DESC LIMIT 1
    ) AS asked
    WHERE state = 'AWAITING_FEATURES' AND NOT claimable
    """
)

_LOG = sa.text(
    """
    SELECT last, greatest(last - relayed, 0) AS behind,
           coalesce((SELECT extract(epoch FROM clock_timestamp() - occurred_at) FROM events
                     WHERE position > relayed ORDER BY position LIMIT 1), 0)::float AS behind_s
    FROM (SELECT coalesce((SELECT max(position) FROM events), 0) AS last,
                 coalesce((SELECT relayed_position FROM topics WHERE topic = :topic), 0) AS relayed) AS positions
    """
)

_LAST_HOUR = sa.text(
    """
    SELECT (SELECT count(*) FROM commands WHERE received_at > since AND outcome = 'accepted') AS accepted,
           (SELECT count(*) FROM commands WHERE received_at > since AND outcome = 'refused') AS refused,
           (SELECT count(*) FROM dead_letters WHERE received_at > since) AS dead_letters
    FROM (SELECT clock_timestamp() - interval '1 hour' AS since) AS hour
    """
)

_LEASE = sa.text(
    "SELECT extract(epoch FROM lease_until - clock_timestamp())::float FROM run_heads "
    "WHERE run_id = :run_id AND token = :token"
)


class StateCount(Model):
    """The runs of one state."""

    state: State
    runs: int
    due: int
    """Ready for a worker, and held by none."""
    backing_off: int
    """Ready for a worker once a pause after a failure is over."""
    held: int
    """Under a live lease."""
    silent: int
    """Their lease ran out: nothing was heard of their worker."""
    due_s: float
    """How long the longest of the due ones has waited."""


class LogReading(Model):
    """The whole service, as the log shows it."""

    states: tuple[StateCount, ...]
    """Only states with runs."""
    questions_open: int
    """Runs that wait for preprocess."""
    oldest_question_s: float
    """Age of the oldest of them; 0 without any."""
    last_position: int
    relay_behind: int
    """Positions that are not published yet; some may be holes."""
    relay_behind_s: float
    """Age of the oldest event that is not published; 0 without any."""
    accepted: int
    """Commands of the last hour."""
    refused: int
    dead_letters: int


class PostgresHealth:
    """What health and metrics ask of Postgres. Every method raises OutsideUnavailable."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def log_reading(self, events_topic: str) -> LogReading:
        """Counts and lags; `events_topic` is the topic whose relay is measured."""
        with domain_errors(), self._engine.begin() as connection:
            connection.execute(_BOUNDED)
            states = tuple(StateCount.model_validate(dict(row._mapping)) for row in connection.execute(_RUNS))
            questions = connection.execute(_QUESTIONS).one()
            log = connection.execute(_LOG, {"topic": events_topic}).one()
            hour = connection.execute(_LAST_HOUR).one()
        return LogReading(
            states=states,
            questions_open=questions.open,
            oldest_question_s=questions.age_s,
            last_position=log.last,
            relay_behind=log.behind,
            relay_behind_s=log.behind_s,
            accepted=hour.accepted,
            refused=hour.refused,
            dead_letters=hour.dead_letters,
        )

    def lease_left_s(self, run_id: str, token: int) -> float | None:
        """Seconds that a lease has left, below 0 where it ran out; None where it was given back or taken."""
        with domain_errors(), self._engine.begin() as connection:
            connection.execute(_BOUNDED)
            left = connection.execute(_LEASE, {"run_id": run_id, "token": token}).scalar_one_or_none()
        return None if left is None else float(left)

    def reach(self) -> None:
        """Ask for nothing, to see that it answers."""
        with domain_errors(), self._engine.begin() as connection:
            connection.execute(_BOUNDED)
