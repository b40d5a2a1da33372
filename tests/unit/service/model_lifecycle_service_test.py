from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from training_fsm.domain import events as e
from training_fsm.domain.errors import OutsideUnavailable, ParentUnfit
from training_fsm.domain.evolve import evolve
from training_fsm.domain.facts import ModelRef, StoredData
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import Timeframe
from training_fsm.ports import FoundModel, RegisteredVersion
from training_fsm.service.model_lifecycle_service import (
    ModelLifecycleService,
    record_of,
    registration_key,
    request_digest,
    trained_until,
)

Life = Callable[[str], tuple[e.Event, ...]]
ContinuedLife = Callable[[str, bool], tuple[e.Event, ...]]
PARENT = ModelRef(name="eurusd-ppo", version=3)


class Registry:
    """A registry in memory; as MLflow's it makes a new version whenever it is told to register."""

    def __init__(self) -> None:
        self.versions: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.moves = 0
        self.holds: dict[str, FoundModel] = {}
        self.fetched: list[FoundModel] = []

    def look_up(self, parent: str) -> FoundModel:
        """What was put under this name."""
        return self.holds[parent]

    def fetch(self, found: FoundModel, into: Path) -> Path:
        """Notes what was asked for."""
        self.fetched.append(found)
        return into

    def find(self, name: str, key: str) -> RegisteredVersion | None:
        """The version with this key."""
        for number, (its_key, _) in enumerate(self.versions.get(name, []), start=1):
            if its_key == key:
                return RegisteredVersion(version=number, digest="d")
        return None

    def register(
        self, name: str, key: str, folder: Path, tracking_run_id: str, tags: Mapping[str, str]
    ) -> RegisteredVersion:
        """Always one more."""
        self.versions.setdefault(name, []).append((key, dict(tags)))
        return RegisteredVersion(version=len(self.versions[name]), digest="d")

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Move it."""
        self.moves += 1
        self.aliases[name, alias] = version

    def alias_version(self, name: str, alias: str) -> int | None:
        """Where it points."""
        return self.aliases.get((name, alias))


def _run(life: Life, until: int = 12, run_id: str = "run-1") -> Run:
    """The run after so many of its events."""
    run = None
    for event in life(run_id)[:until]:
        run = evolve(run, run_id, event, State.EVALUATING)
    assert run is not None
    return run


def _continued(life: ContinuedLife) -> Run:
    """A run that continues the registered model, about to be registered."""
    run = None
    for event in life("run-2", False)[:-1]:
        run = evolve(run, "run-2", event, State.EVALUATING)
    assert run is not None
    return run


def _of(run: Run, **parent: object) -> Run:
    """The same run with another parent."""
    assert run.parent is not None
    return run.model_copy(update={"parent": run.parent.model_copy(update=parent)})


def _from_file(run: Run) -> Run:
    """The same run, continuing a zip of a tracking run that is no version."""
    return _of(run, kind="sb3_weights", model=None, record=None)


def test_a_model_is_registered_once_however_often_it_is_tried(life: Life, tmp_path: Path) -> None:
    """A try after a crash finds the version that the first one made."""
    registry = Registry()
    service = ModelLifecycleService(registry)
    first, second = (service.register(_run(life), tmp_path) for _ in range(2))
    assert first == second == e.ModelRegistered(name="eurusd-ppo", version=1, digest="d")
    assert len(registry.versions["eurusd-ppo"]) == 1


def test_a_version_says_where_it_comes_from(life: Life, tmp_path: Path) -> None:
    """Its tags name run, features, data, code, request and what the test part gave."""
    registry, run = Registry(), _run(life)
    ModelLifecycleService(registry).register(run, tmp_path)
    key, tags = registry.versions["eurusd-ppo"][0]
    assert key == run.registration_key
    assert tags == {
        "training_fsm.run_id": "run-1",
        "training_fsm.agent": "PPO",
        "training_fsm.symbol": "EURUSD",
        "training_fsm.timeframe": "4h",
        "training_fsm.request_digest": request_digest(run.plan.request),
        "training_fsm.feature_config_semver": "1.0.0",
        "training_fsm.feature_config_hash": run.plan.feature_config.hash,
        "training_fsm.data_digest": "f" * 64,
        "training_fsm.code_version": "0.1.0",
        "training_fsm.gate_passed": "true",
        "training_fsm.depth": "0",
        "training_fsm.steps": str(run.checkpoints[-1].step),
        "training_fsm.trained_until": "2026-11-24T12:00:00Z",
        "training_fsm.test_sharpe": "0.61",
    }


@pytest.mark.parametrize("until", [5, 6, 10, 11])
def test_nothing_is_registered_before_its_facts_are_in_the_log(life: Life, tmp_path: Path, until: int) -> None:
    """Without key, tracking run, data or evaluation the registry is not asked at all."""
    registry = Registry()
    with pytest.raises(ValueError, match="run-1: expected key, tracking run, data and evaluation"):
        ModelLifecycleService(registry).register(_run(life, until), tmp_path)
    assert registry.versions == {}


def test_the_key_names_run_and_weights(life: Life) -> None:
    """It is the same for each try, another for another run, and there is none before there are weights."""
    assert registration_key(_run(life, 11)) == registration_key(_run(life, 12)) == f"run-1:{'a' * 16}"
    assert registration_key(_run(life, 11, "run-2")) != registration_key(_run(life, 11))
    with pytest.raises(ValueError, match="expected a checkpoint"):
        registration_key(_run(life, 7))


def test_a_child_says_who_its_parent_is(continued_life: ContinuedLife, tmp_path: Path) -> None:
    """Event and tags name parent, root and depth; the steps are those of parent and child together."""
    registry, run = Registry(), _continued(continued_life)
    registered = ModelLifecycleService(registry).register(run, tmp_path)
    assert (registered.parent, registered.root, registered.depth) == (PARENT, PARENT, 1)
    tags = registry.versions["eurusd-ppo"][0][1]
    line = {name: tags[f"training_fsm.{name}"] for name in ("parent", "root", "depth", "steps")}
    assert line == {"parent": "eurusd-ppo/3", "root": "eurusd-ppo/3", "depth": "1", "steps": str(run.last_step)}
    assert run.last_step is not None
    assert run.last_step > run.first_step > 0


def test_a_grandchild_keeps_the_root(continued_life: ContinuedLife, tmp_path: Path) -> None:
    """The root is the first of the line, not the parent."""
    run = _continued(continued_life)
    assert run.parent is not None
    assert run.parent.record is not None
    first = ModelRef(name="older", version=1)
    record = run.parent.record.model_copy(update={"parent": first, "root": first, "depth": 1})
    registered = ModelLifecycleService(Registry()).register(_of(run, record=record), tmp_path)
    assert (registered.parent, registered.root, registered.depth) == (PARENT, first, 2)


def test_the_child_of_a_file_names_the_file(continued_life: ContinuedLife, tmp_path: Path) -> None:
    """A zip that is no version has no name in the registry: the tag says where it lies, and there is no root."""
    registry, run = Registry(), _from_file(_continued(continued_life))
    registered = ModelLifecycleService(registry).register(run, tmp_path)
    assert (registered.parent, registered.root, registered.depth) == (None, None, 1)
    tags = registry.versions["eurusd-ppo"][0][1]
    assert tags["training_fsm.parent"].startswith("runs:/tracking-1/")
    assert "training_fsm.root" not in tags


def test_the_record_has_all_that_a_child_needs(life: Life, continued_life: ContinuedLife) -> None:
    """Request, data, last checkpoint, steps and line of descent; its data are no event any more."""
    run = _continued(continued_life)
    record = record_of(run)
    assert (record.request, record.feature_config) == run.plan
    assert type(record.data) is StoredData
    assert run.data is not None
    assert record.data.artifact == run.data.artifact
    assert (record.checkpoint, record.steps) == (run.checkpoints[-1].artifact, run.last_step)
    assert record.fingerprint == run.fingerprint
    assert (record.parent, record.root, record.depth) == (PARENT, PARENT, 1)
    alone = record_of(_run(life))
    assert (alone.run_id, alone.parent, alone.root, alone.depth) == ("run-1", None, None, 0)
    assert type(record).model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("until", [5, 6, 7])
def test_there_is_no_record_before_its_facts_are_in_the_log(life: Life, until: int) -> None:
    """Without data, fingerprint or checkpoint the run is named."""
    with pytest.raises(ValueError, match="run-1: expected data, fingerprint and a checkpoint"):
        record_of(_run(life, until))


def test_trained_until_is_the_latest_of_the_line_on_the_same_bars(life: Life, continued_life: ContinuedLife) -> None:
    """A parent that saw later bars counts; not one of another symbol or timeframe, nor a zip that cannot say."""
    run = _continued(continued_life)
    assert run.data is not None
    assert run.parent is not None
    record, own = run.parent.record, run.data.bounds.training.end
    assert record is not None
    later, earlier = own + timedelta(days=1), own - timedelta(days=1)
    after, before = (record.model_copy(update={"trained_until": at}) for at in (later, earlier))
    assert trained_until(_of(run, record=after)) == later
    assert record_of(_of(run, record=after)).trained_until == later
    assert trained_until(_of(run, record=before)) == own
    for change in ({"symbol": "GBPUSD"}, {"timeframe": Timeframe("1d")}):
        elsewhere = after.model_copy(update={"request": record.request.model_copy(update=change)})
        assert trained_until(_of(run, record=elsewhere)) == own
    assert trained_until(_from_file(run)) == trained_until(_run(life)) == own
    with pytest.raises(ValueError, match="run-1: expected data"):
        trained_until(_run(life, 5))


def _unknown(name: str, version: int) -> e.ModelRegistered | None:
    """A log that another installation's registry is none of."""
    return None


def test_a_parent_is_found_and_fetched(tmp_path: Path) -> None:
    """What the first look gave is what is fetched, with the digest of its tag where the log does not know it."""
    registry = Registry()
    registry.holds["models:/eurusd-ppo@champion"] = found = FoundModel(PARENT, "somewhere", "tag", "PPO")
    parent = ModelLifecycleService(registry).find_parent("models:/eurusd-ppo@champion", tmp_path, _unknown)
    assert (parent.found, parent.path, parent.digest) == (found, tmp_path, "tag")
    assert registry.fetched == [found]


@pytest.mark.parametrize("tag", ["altered", None])
def test_the_digest_of_the_log_counts_before_the_tag(tmp_path: Path, tag: str | None) -> None:
    """Whoever alters files and tag together is found out, and whoever only loses the tag loses nothing."""
    registry, asked = Registry(), []
    registry.holds["run-1"] = FoundModel(PARENT, "somewhere", tag, "PPO")

    def registered(name: str, version: int) -> e.ModelRegistered:
        asked.append((name, version))
        return e.ModelRegistered(name=name, version=version, digest="log")

    parent = ModelLifecycleService(registry).find_parent("run-1", tmp_path, registered)
    assert asked == [("eurusd-ppo", 3)]
    assert [found.digest for found in registry.fetched] == [parent.digest] == ["log"]


def test_a_parent_of_another_algorithm_is_not_even_fetched(tmp_path: Path) -> None:
    """Its tag says so; the error has both sides."""
    registry = Registry()
    registry.holds["models:/dqn/1"] = FoundModel(ModelRef(name="dqn", version=1), "somewhere", "d", "DQN")
    with pytest.raises(ParentUnfit, match=r"^another algorithm: the parent's agent is DQN, expected PPO$") as caught:
        ModelLifecycleService(registry).find_parent("models:/dqn/1", tmp_path, _unknown)
    assert (caught.value.failure.kind, caught.value.failure.field) == ("parent_unfit", "agent.name")
    assert registry.fetched == []


def test_a_file_of_a_run_is_fetched_and_vouched_for_by_nobody(tmp_path: Path) -> None:
    """The log is not asked about what is no version; who takes it for a registered model hears that it is none."""
    registry = Registry()
    registry.holds["runs:/1/ppo.zip"] = FoundModel(None, "runs:/1/ppo.zip", None, None)

    def registered(name: str, version: int) -> e.ModelRegistered:
        raise AssertionError(name)

    parent = ModelLifecycleService(registry).find_parent("runs:/1/ppo.zip", tmp_path, registered)
    assert parent.path == tmp_path
    with pytest.raises(ParentUnfit, match=r"^runs:/1/ppo\.zip was not registered by this service"):
        _ = parent.digest


def test_aliases_are_moved_until_they_equal_the_log() -> None:
    """Only what differs is moved; a second call has nothing to do, and a lost alias comes back."""
    registry = Registry()
    service = ModelLifecycleService(registry)
    registry.set_alias("a", "candidate", 1)
    registry.set_alias("b", "candidate", 7)
    log = {"candidate": {"a": 2, "b": 7, "c": 1}}
    assert service.reconcile_aliases(log) == ("a@candidate", "c@candidate")
    assert registry.aliases == {("a", "candidate"): 2, ("b", "candidate"): 7, ("c", "candidate"): 1}
    assert service.reconcile_aliases(log) == ()
    assert registry.moves == 4
    registry.aliases.clear()
    assert service.reconcile_aliases({"candidate": {"a": 2}}) == ("a@candidate",)


def test_each_alias_follows_its_own_versions() -> None:
    """The candidate may be newer than the champion, and a name may have only one of the two."""
    registry = Registry()
    service = ModelLifecycleService(registry)
    log = {"candidate": {"a": 3, "b": 1}, "champion": {"a": 2}}
    assert service.reconcile_aliases(log) == ("a@candidate", "b@candidate", "a@champion")
    assert registry.aliases == {("a", "candidate"): 3, ("b", "candidate"): 1, ("a", "champion"): 2}
    registry.set_alias("a", "champion", 1)
    assert service.reconcile_aliases(log) == ("a@champion",)
    assert registry.aliases["a", "champion"] == 2
    assert service.reconcile_aliases({}) == ()


def test_one_lost_model_does_not_stop_the_aliases_of_the_others() -> None:
    """All are tried, then the ones that failed are named."""

    class WithoutB(Registry):
        def set_alias(self, name: str, alias: str, version: int) -> None:
            if name == "b":
                raise OutsideUnavailable("mlflow", "no such model")
            super().set_alias(name, alias, version)

    registry = WithoutB()
    words = r"^mlflow: b@candidate: no such model; b@champion: no such model$"
    with pytest.raises(OutsideUnavailable, match=words):
        ModelLifecycleService(registry).reconcile_aliases(
            {"candidate": {"a": 2, "b": 7, "c": 1}, "champion": {"b": 7, "a": 1}}
        )
    assert registry.aliases == {("a", "candidate"): 2, ("c", "candidate"): 1, ("a", "champion"): 1}
