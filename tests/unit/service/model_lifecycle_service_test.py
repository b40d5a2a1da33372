from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from training_fsm.domain import events as e
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.evolve import evolve
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.ports import RegisteredVersion
from training_fsm.service.model_lifecycle_service import ModelLifecycleService, registration_key, request_digest

Life = Callable[[str], tuple[e.Event, ...]]


class Registry:
    """A registry in memory; as MLflow's it makes a new version whenever it is told to register."""

    def __init__(self) -> None:
        self.versions: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.moves = 0

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
        "training_fsm.request_digest": request_digest(run.request),
        "training_fsm.feature_config_semver": "1.0.0",
        "training_fsm.feature_config_hash": run.feature_config.hash,
        "training_fsm.data_digest": "f" * 64,
        "training_fsm.code_version": "0.1.0",
        "training_fsm.gate_passed": "true",
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


def test_aliases_are_moved_until_they_equal_the_log() -> None:
    """Only what differs is moved; a second call has nothing to do, and a lost alias comes back."""
    registry = Registry()
    service = ModelLifecycleService(registry)
    registry.set_alias("a", "candidate", 1)
    registry.set_alias("b", "candidate", 7)
    assert service.reconcile_aliases({"a": 2, "b": 7, "c": 1}) == ("a", "c")
    assert registry.aliases == {("a", "candidate"): 2, ("b", "candidate"): 7, ("c", "candidate"): 1}
    assert service.reconcile_aliases({"a": 2, "b": 7, "c": 1}) == ()
    assert registry.moves == 4
    registry.aliases.clear()
    assert service.reconcile_aliases({"a": 2}) == ("a",)


def test_one_lost_model_does_not_stop_the_aliases_of_the_others() -> None:
    """All are tried, then the ones that failed are named."""

    class WithoutB(Registry):
        def set_alias(self, name: str, alias: str, version: int) -> None:
            if name == "b":
                raise OutsideUnavailable("mlflow", "no such model")
            super().set_alias(name, alias, version)

    registry = WithoutB()
    with pytest.raises(OutsideUnavailable, match=r"^mlflow: b: no such model$"):
        ModelLifecycleService(registry).reconcile_aliases({"a": 2, "b": 7, "c": 1})
    assert registry.aliases == {("a", "candidate"): 2, ("c", "candidate"): 1}
