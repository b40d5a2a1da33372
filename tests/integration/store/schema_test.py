"""What the database itself refuses, whoever asks."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from training_fsm.domain.machine import arrows
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.store.engine import make_engine

INSERT = sa.text(
    "INSERT INTO events (stream, version, type, schema_version, occurred_at, from_state, to_state, actor, "
    "causation_id, correlation_id, payload, previous_hash, hash) VALUES (:stream, :version, :type, 1, "
    "clock_timestamp(), :source, :dest, 'a', 'c', 'c', cast(:payload AS json), '', '')"
)


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    engine = make_engine(migrated_database_url, application_name="test")
    yield engine
    engine.dispose()


def _insert(engine: sa.Engine, type_: str, source: str | None, dest: str | None, payload: str = "{}") -> None:
    values = {"stream": "s", "version": 1, "type": type_, "source": source, "dest": dest, "payload": payload}
    with engine.begin() as connection:
        connection.execute(INSERT, values)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{}'",
        "UPDATE events SET actor = 'me' WHERE version = 1",
        "DELETE FROM events WHERE version = 1",
        "TRUNCATE events",
        "TRUNCATE events CASCADE",
    ],
)
def test_nobody_changes_or_removes_an_event(statement: str, engine: sa.Engine, live: Callable[..., Run]) -> None:
    """The owner of the table is refused as well."""
    live(engine, "r", 4)
    with pytest.raises(sa.exc.DBAPIError, match="table events is append-only"), engine.begin() as connection:
        connection.execute(sa.text(statement))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM events WHERE actor <> 'me'")).scalar_one() == 4


def test_every_arrow_of_the_machine_is_accepted_and_no_other(engine: sa.Engine) -> None:
    """All states by all types by all states, tried by hand: the CHECK is the machine."""
    known = {(source, event, dest) for source, event, dest in arrows()}
    types = sorted({event for _, event, _ in known} | {"command_refused", "run_dreamt"})
    wrong = []
    with engine.connect() as connection:
        for source in State:
            for type_ in types:
                for dest in State:
                    values = {
                        "stream": "s",
                        "version": 1,
                        "type": type_,
                        "source": None if source is State.NEW else source.value,
                        "dest": dest.value,
                        "payload": "{}",
                    }
                    accepted = True
                    with connection.begin() as transaction:
                        try:
                            connection.execute(INSERT, values)
                        except sa.exc.IntegrityError as error:
                            accepted = "events_transition" not in str(error.orig)
                        transaction.rollback()
                    if accepted is not ((source, type_, dest) in known):
                        wrong.append((source, type_, dest))
    assert wrong == []


def test_streams_without_states_take_their_own_events_only(engine: sa.Engine) -> None:
    """A refusal and a letter have no states; a run's event without them is none."""
    _insert(engine, "command_refused", None, None)
    with pytest.raises(sa.exc.IntegrityError, match="events_transition"):
        _insert(engine, "run_claimed", None, None)


def test_an_event_has_a_greatest_size(engine: sa.Engine) -> None:
    """512 kB are stored, a byte more is refused: the relay could not send it for ever."""
    _insert(engine, "command_refused", None, None, '"' + "x" * (524_288 - 2) + '"')
    with pytest.raises(sa.exc.IntegrityError, match="events_size"):
        _insert(engine, "message_dead_lettered", None, None, '"' + "x" * (524_288 - 1) + '"')


def test_a_stream_has_one_event_per_version(engine: sa.Engine) -> None:
    """Two writers of the same version: one is refused by name."""
    _insert(engine, "command_refused", None, None)
    with pytest.raises(sa.exc.IntegrityError, match="events_stream_version_key"):
        _insert(engine, "command_refused", None, None)


def test_the_reader_reads_and_cannot_write(engine: sa.Engine, live: Callable[..., Run]) -> None:
    """The role for people sees tables and views, and changes nothing."""
    live(engine, "r", 4)
    with engine.connect() as connection:
        may = sa.text("SELECT has_table_privilege('training_fsm_reader', :table, :privilege)")
        for table in ("events", "run_heads", "runs", "run_history", "run_timeline", "commands"):
            assert connection.execute(may, {"table": table, "privilege": "SELECT"}).scalar_one()
            for privilege in ("INSERT", "UPDATE", "DELETE", "TRUNCATE"):
                assert not connection.execute(may, {"table": table, "privilege": privilege}).scalar_one()


def test_the_views_show_a_run_in_words(engine: sa.Engine, live: Callable[..., Run]) -> None:
    """Where it stands, what happened, and how long it stayed where."""
    live(engine, "r")
    with engine.connect() as connection:
        run = connection.execute(sa.text("SELECT * FROM runs")).one()
        history = connection.execute(sa.text("SELECT event FROM run_history ORDER BY version")).scalars().all()
        timeline = connection.execute(
            sa.text("SELECT state, left_at FROM run_timeline ORDER BY entered_at, state")
        ).all()
    assert (run.run_id, run.state, run.checkpoint_step, run.model_version) == ("r", "REGISTERED", 10_240, 3)
    assert (history[0], history[-1], len(history)) == ("run_requested", "model_registered", 13)
    states = ["AWAITING_FEATURES", "REQUESTED", "TRAINING", "EVALUATING", "REGISTERED"]
    assert [row.state for row in timeline] == states
    assert [row.left_at is None for row in timeline] == [False] * 4 + [True]
