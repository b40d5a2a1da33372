"""The demo's own judgement: a run killed once passes, and each thing that could be wrong is named."""

from collections.abc import Callable, Sequence

import pytest

from training_fsm.cli.demo.checks import faults_of_kafka, faults_of_log
from training_fsm.domain import events as e

Life = Callable[[str], tuple[e.Event, ...]]


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
    return faults_of_log(range(1, len(events) + 1), events, steps[0])


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
    (fault,) = faults_of_log(versions, killed_once, steps[0])
    assert fault.startswith("versions:")


def test_second_model_is_named(killed_once: list[e.Event]) -> None:
    """A take-over that registers again makes two models of one run."""
    (fault,) = _faults([*killed_once, killed_once[-1]])
    assert fault.startswith("model_registered:")


def test_repeat_on_kafka_is_harmless_and_a_loss_is_not() -> None:
    """The embedded broker may bring an event twice; what it must not do is leave one out."""
    assert faults_of_kafka([1, 2, 1, 2, 3], [1, 2, 3]) == []
    assert faults_of_kafka([1, 3], [1, 2, 3]) != []
