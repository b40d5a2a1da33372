from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from training_fsm.domain import events as e
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.facts import ModelRef
from training_fsm.ports import Cause
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.store.model_reads import PostgresModelReads, VersionNumbers

CAUSE = Cause("worker-1", "work", "r")

Life = tuple[e.Event, ...]
Register = Callable[..., None]


def _ref(text: str) -> ModelRef:
    name, _, version = text.partition("/")
    return ModelRef(name=name, version=int(version))


@pytest.fixture
def engine(migrated_database_url: str) -> Iterator[sa.Engine]:
    """A database with our tables."""
    engine = make_engine(migrated_database_url, application_name="test")
    yield engine
    engine.dispose()


@pytest.fixture
def register(engine: sa.Engine, life: Callable[[str], Life], continued_life: Callable[..., Life]) -> Register:
    """Let a run register a model under a name, as a child where a parent is given."""

    def registered(model: str, parent: str | None = None, root: str | None = None, depth: int = 0) -> None:
        run_id = f"run-{model.replace('/', '-')}"
        events = life(run_id) if parent is None else continued_life(run_id)
        last = e.ModelRegistered(
            **_ref(model).model_dump(),
            digest="d",
            parent=parent and _ref(parent),
            root=_ref(root or parent) if parent else None,
            depth=depth,
        )
        with PostgresEventLog(engine).begin() as unit:
            unit.append(run_id, (*events[:-1], last), CAUSE)

    return registered


@pytest.fixture
def reads(engine: sa.Engine) -> PostgresModelReads:
    """What is tested."""
    return PostgresModelReads(engine)


def test_a_version_is_read_with_its_line_its_data_and_its_worth(
    register: Register, reads: PostgresModelReads, continued_life: Callable[..., Life]
) -> None:
    """Every column of the view arrives, and the parent as the request and the log name it."""
    register("eurusd-ppo/3")
    register("eurusd-ppo/4", "eurusd-ppo/3", depth=1)
    child, parent = reads.versions(None, 10)
    resolved = continued_life("r")[2]
    assert isinstance(resolved, e.ParentResolved)
    assert (child.ref, child.parent, child.root, child.depth) == (
        _ref("eurusd-ppo/4"),
        _ref("eurusd-ppo/3"),
        _ref("eurusd-ppo/3"),
        1,
    )
    assert (child.continues, child.parent_kind) == ("models:/eurusd-ppo/3", "training_fsm")
    assert (child.data_end, child.data_digest) == (resolved.request.range.end, "e" * 64)
    assert (child.steps, child.test_sharpe, child.test_total_return_fraction) == (20_480, 0.61, None)
    assert (parent.parent, parent.root, parent.depth, parent.continues) == (None, parent.ref, 0, None)
    assert (parent.feature_semver, parent.feature_hash) == (child.feature_semver, child.feature_hash)
    assert (parent.candidate, child.candidate) == (False, True)


def test_only_what_is_registered_is_a_model(
    register: Register, reads: PostgresModelReads, engine: sa.Engine, life: Callable[[str], Life]
) -> None:
    """A run that is on its way has no version yet."""
    with PostgresEventLog(engine).begin() as unit:
        unit.append("half", life("half")[:-1], CAUSE)
    assert reads.versions(None, 10) == ()
    assert reads.names() == ()
    assert reads.run(_ref("eurusd-ppo/3")) is None


def test_the_champion_is_the_last_that_was_promoted(
    register: Register, reads: PostgresModelReads, engine: sa.Engine
) -> None:
    """One a name, and none where nobody was."""
    for model in ("a/1", "a/2", "b/1"):
        register(model)
    log = PostgresEventLog(engine)
    for after, version in enumerate((1, 2)):
        promoted = e.ChampionPromoted(name="a", version=version, digest="d", run_id="r", supersedes=None)
        with log.begin() as unit:
            unit.promote(promoted, after, CAUSE)
    assert [str(version.ref) for version in reads.versions(None, 10) if version.champion] == ["a/2"]
    assert reads.numbers("a") == VersionNumbers(versions=(1, 2), champion=2)
    assert reads.numbers("b") == VersionNumbers(versions=(1,), champion=None)
    assert reads.numbers("c") == VersionNumbers(versions=(), champion=None)


def test_a_list_can_be_narrowed(register: Register, reads: PostgresModelReads) -> None:
    """By name and by number, the newest first."""
    for model in ("a/1", "b/1", "a/2"):
        register(model)
    assert [str(version.ref) for version in reads.versions("a", 10)] == ["a/2", "a/1"]
    assert [str(version.ref) for version in reads.versions(None, 2)] == ["a/2", "b/1"]
    assert reads.names() == ("a", "b")


def test_relatives_are_a_whole_line_across_names(register: Register, reads: PostgresModelReads) -> None:
    """From the root with every branch, whichever member is named; a name alone brings all of its lines."""
    register("a/1")
    register("a/2", "a/1", "a/1", 1)
    register("b/1", "a/2", "a/1", 2)
    register("a/3")
    register("b/2", "a/3", "a/3", 1)
    register("c/1")

    def found(name: str, version: int | None = None) -> list[str]:
        return [str(relative.ref) for relative in reads.relatives(name, version)]

    assert found("b", 1) == found("a", 1) == ["a/1", "a/2", "b/1"]
    assert found("b") == found("a") == ["a/1", "a/2", "b/1", "a/3", "b/2"]
    assert found("c") == ["c/1"]
    assert found("d") == []


def test_a_parent_that_is_in_no_log_still_has_its_line(register: Register, reads: PostgresModelReads) -> None:
    """It is found by its children and by its root, under the version that they name."""
    register("a/1", "elsewhere/6", "far/2", 4)
    for name, version in (("elsewhere", None), ("elsewhere", 6), ("far", 2)):
        assert [str(relative.ref) for relative in reads.relatives(name, version)] == ["a/1"]
    assert reads.relatives("elsewhere", 5) == ()


def test_a_version_leads_to_its_run(register: Register, reads: PostgresModelReads) -> None:
    """With everything that its events add up to."""
    register("a/1")
    run = reads.run(_ref("a/1"))
    assert run is not None
    assert run.run_id == "run-a-1"
    assert run.evaluation is not None
    assert reads.run(_ref("a/2")) is None


def test_an_absent_postgres_is_said_so() -> None:
    """Nobody listens there: the error names the service."""
    engine = make_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", application_name="test")
    with pytest.raises(OutsideUnavailable, match="postgres"):
        PostgresModelReads(engine).versions(None, 1)
