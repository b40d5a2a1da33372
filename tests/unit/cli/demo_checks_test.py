"""The demo's own judgement: a run killed once and its child pass, and each thing that could be wrong is named."""

from collections.abc import Callable, Sequence

import pytest

from training_fsm.cli.demo.checks import (
    faults_of_continued,
    faults_of_kafka,
    faults_of_killed,
    faults_of_registry,
    require,
)
from training_fsm.cli.errors import NotSo
from training_fsm.domain import events as e
from training_fsm.domain.facts import ModelRef, SharedRows
from training_fsm.domain.lineage import Inheritance, Reset

Life = Callable[[str], tuple[e.Event, ...]]
Other = Callable[[list[e.Event]], list[e.Event]]


@pytest.fixture
def killed_once(life: Life) -> list[e.Event]:
    """A run whose worker died after its first checkpoint."""
    events = list(life("run"))
    started = next(event for event in events if isinstance(event, e.TrainingStarted))
    first = next(place for place, event in enumerate(events) if isinstance(event, e.CheckpointSaved))
    saved = events[first]
    assert isinstance(saved, e.CheckpointSaved)
    resumed = e.TrainingResumed(
        token=2,
        step=saved.step,
        checkpoint=saved.artifact.sha256,
        fidelity="exact",
        fingerprint=started.fingerprint,
    )
    claimed = e.RunClaimed(token=2, worker="worker-2", lease_s=4)
    return [*events[: first + 1], claimed, resumed, *events[first + 1 :]]


def _faults(events: Sequence[e.Event]) -> list[str]:
    steps = [event.steps for event in events if isinstance(event, e.TrainingFinished)]
    return faults_of_killed(range(1, len(events) + 1), events, steps[0])


def test_run_killed_once_is_as_it_must_be(killed_once: list[e.Event]) -> None:
    """Two claims, one exact resume from the last checkpoint and one model are what is wanted."""
    assert _faults(killed_once) == []


def test_run_that_nobody_killed_is_told_from_one_that_was(life: Life) -> None:
    """A run without a second claim and a resume proves nothing, and the words say so."""
    claims, resumes = _faults(life("run"))
    assert claims.startswith("run_claimed: expected tokens 1 and 2")
    assert resumes.startswith("training_resumed: expected exactly one, got 0")


def test_resume_from_an_older_checkpoint_is_named(killed_once: list[e.Event]) -> None:
    """Work that was stored and done again is work lost."""
    older = [
        event.model_copy(update={"step": 1}) if isinstance(event, e.TrainingResumed) else event for event in killed_once
    ]
    (fault,) = _faults(older)
    assert fault.startswith("training_resumed: expected the last checkpoint")


def test_missing_version_is_named(killed_once: list[e.Event]) -> None:
    """A gap in the versions is an event lost."""
    versions = [*range(1, len(killed_once)), len(killed_once) + 1]
    steps = [event.steps for event in killed_once if isinstance(event, e.TrainingFinished)]
    (fault,) = faults_of_killed(versions, killed_once, steps[0])
    assert fault.startswith("versions:")


def test_training_that_ended_too_early_is_named(killed_once: list[e.Event]) -> None:
    """Where it ends is known from the request, and from the parent's steps where there is one."""
    steps = [event.steps for event in killed_once if isinstance(event, e.TrainingFinished)]
    (fault,) = faults_of_killed(range(1, len(killed_once) + 1), killed_once, steps[0] + 1)
    assert fault.startswith(f"training_finished: expected once, after {steps[0] + 1} steps")


def test_second_model_is_named(killed_once: list[e.Event]) -> None:
    """A take-over that registers again makes two models of one run."""
    (fault,) = _faults([*killed_once, killed_once[-1]])
    assert fault.startswith("model_registered:")


def test_repeat_on_kafka_is_harmless_and_a_loss_is_not() -> None:
    """The embedded broker may bring an event twice; what it must not do is leave one out."""
    assert faults_of_kafka([1, 2, 1, 2, 3], [1, 2, 3]) == []
    assert faults_of_kafka([1, 3], [1, 2, 3]) != []


@pytest.fixture
def parent(life: Life) -> e.ModelRegistered:
    """The version that `continued` goes on from."""
    registered = life("parent")[-1]
    assert isinstance(registered, e.ModelRegistered)
    return registered


@pytest.fixture
def continued(continued_life: Callable[[str], tuple[e.Event, ...]]) -> list[e.Event]:
    """A run that continues a model on its data, with nothing begun anew."""
    events = list(continued_life("child"))
    frozen = next(event for event in events if isinstance(event, e.DataFrozen))
    shared = SharedRows(
        start=frozen.bounds.training.start,
        end=frozen.bounds.test.end,
        rows=frozen.rows,
        parent_digest=frozen.digest,
        found_digest=frozen.digest,
        rows_different=0,
        first_difference=None,
    )
    events = _with(events, e.DataFrozen, shared=shared)
    return _with(events, e.TrainingStarted, inheritance=Inheritance(carried=("weights", "optimizer"), reset=()))


def _with(events: list[e.Event], kind: type[e.Event], **fields: object) -> list[e.Event]:
    return [event.model_copy(update=fields) if isinstance(event, kind) else event for event in events]


def _faults_of_child(events: list[e.Event], parent: e.ModelRegistered) -> list[str]:
    steps = next(event.steps for event in events if isinstance(event, e.TrainingFinished))
    begun = next(event.parent.steps for event in events if isinstance(event, e.ParentResolved))
    return faults_of_continued(range(1, len(events) + 1), events, steps, parent, begun)


def test_child_on_its_parent_s_data_is_as_it_must_be(continued: list[e.Event], parent: e.ModelRegistered) -> None:
    """Found in Feast, equal to the parent's rows, everything carried over, one model of the first generation."""
    assert _faults_of_child(continued, parent) == []


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (
            lambda events: _with(events, e.ParentResolved, parent=events[2].parent.model_copy(update={"digest": "0"})),
            "parent_resolved: expected exactly one, that names eurusd-ppo/3 with digest dddddddddddd",
        ),
        (lambda events: [*events[:3], *events[2:]], "parent_resolved: expected exactly one"),
        (
            lambda events: _with(events, e.ModelRegistered, parent=ModelRef(name="eurusd-ppo", version=2)),
            "model_registered: expected parent and root eurusd-ppo/3 and depth 1, got parent eurusd-ppo/2",
        ),
        (lambda events: _with(events, e.ModelRegistered, depth=2), "model_registered: expected parent and root"),
        (lambda events: _with(events, e.DataFrozen, shared=None), "data_frozen: expected exactly one"),
        (lambda events: _with(events, e.TrainingStarted, step=0), "training_started: expected once, at the parent's"),
        (lambda events: _with(events, e.TrainingStarted, inheritance=None), "training_started: expected everything"),
        (
            lambda events: _with(
                events,
                e.TrainingStarted,
                inheritance=Inheritance(carried=("weights",), reset=(Reset(part="optimizer", why="a zip"),)),
            ),
            "training_started: expected everything carried over",
        ),
    ],
    ids=["altered", "resolved-twice", "sibling", "grandchild", "unshared", "anew", "unsaid", "reset"],
)
def test_each_departure_of_a_child_is_named(
    continued: list[e.Event], parent: e.ModelRegistered, other: Other, fault: str
) -> None:
    """One thing that is otherwise gives one fault, which begins with the event that tells it."""
    (found,) = _faults_of_child(other(continued), parent)
    assert found.startswith(fault)


def test_drift_and_a_question_to_ingest_are_named(
    continued_life: Callable[[str, bool], tuple[e.Event, ...]], continued: list[e.Event], parent: e.ModelRegistered
) -> None:
    """A child that ingest was asked for, or whose rows differ from its parent's, is not the demo's."""
    frozen = next(event for event in continued if isinstance(event, e.DataFrozen))
    assert frozen.shared is not None
    drifted = frozen.shared.model_copy(update={"found_digest": "0" * 64, "rows_different": 1})
    (fault,) = _faults_of_child(_with(continued, e.DataFrozen, shared=drifted), parent)
    assert fault.startswith("data_frozen: expected exactly one, with rows equal to the parent's")
    lacking = _faults_of_child(list(continued_life("child", True)), parent)
    assert "features_requested: expected none, Feast has every feature, got 1" in lacking


def test_versions_in_mlflow_that_the_log_does_not_know_are_named() -> None:
    """Neither one too many nor one of another run."""
    assert faults_of_registry({1: "first", 2: "second"}, {1: "first", 2: "second"}) == []
    assert faults_of_registry({1: "first", 2: "second", 3: "second"}, {1: "first", 2: "second"}) != []
    assert faults_of_registry({1: "first", 2: "first"}, {1: "first", 2: "second"}) != []


def test_faults_end_the_demo_with_a_line_each() -> None:
    """Whoever reads the end of the output sees all that is wrong."""
    require([])
    with pytest.raises(NotSo) as raised:
        require(["one", "other"])
    assert raised.value.lines[1:] == ("  one", "  other")
