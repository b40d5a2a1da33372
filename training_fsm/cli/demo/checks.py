"""What must be so in the logs of the demo's runs, on Kafka and in MLflow."""

from collections.abc import Mapping, Sequence

from training_fsm.cli.errors import NotSo
from training_fsm.domain import events as e
from training_fsm.domain.facts import ModelRef


def require(faults: Sequence[str]) -> None:
    """Raise NotSo with every fault, where there is one."""
    if faults:
        raise NotSo("the demo did not go as it must:", *(f"  {fault}" for fault in faults))


def faults_of_killed(versions: Sequence[int], events: Sequence[e.Event], last_step: int) -> list[str]:
    """Everything in a run's history that is not as one killed and one resuming worker leave it, in words."""
    claims = [event for event in events if isinstance(event, e.RunClaimed)]
    faults = _faults_of_any(versions, events, last_step)
    if [claim.token for claim in claims] != [1, 2] or len({claim.worker for claim in claims}) != 2:
        told = [(claim.token, claim.worker) for claim in claims]
        faults.append(f"run_claimed: expected tokens 1 and 2 of two workers, got {told}")
    return faults + _faults_of_resume(events)


def faults_of_continued(
    versions: Sequence[int], events: Sequence[e.Event], last_step: int, parent: e.ModelRegistered, parent_steps: int
) -> list[str]:
    """Everything in a run's history that is not as the parent's child with unchanged data leaves it, in words."""
    return [
        *_faults_of_any(versions, events, last_step),
        *_faults_of_parent(events, parent),
        *_faults_of_features(events),
        *_faults_of_start(events, parent_steps),
    ]


def faults_of_kafka(published: Sequence[int], versions: Sequence[int]) -> list[str]:
    """Whether the versions read from the events topic, repeats dropped, are those of the log in their order."""
    seen, expected = list(dict.fromkeys(published)), list(versions)
    return [] if seen == expected else [f"events topic: expected versions {expected}, got {seen}"]


def faults_of_registry(found: Mapping[int, str], expected: Mapping[int, str]) -> list[str]:
    """Whether a name's versions and the runs that they come from are those of the log, and no others."""
    return [] if found == expected else [f"MLflow: expected versions {dict(expected)}, found {dict(found)}"]


def _faults_of_any(versions: Sequence[int], events: Sequence[e.Event], last_step: int) -> list[str]:
    """Of a run that ended in one model."""
    faults = []
    if list(versions) != list(range(1, len(events) + 1)):
        faults.append(f"versions: expected 1 to {len(events)} without a gap, got {list(versions)}")
    registered = [event for event in events if isinstance(event, e.ModelRegistered)]
    if len(registered) != 1 or not isinstance(events[-1], e.ModelRegistered):
        faults.append(f"model_registered: expected exactly one, as the last event, got {len(registered)}")
    saved = [event.step for event in events if isinstance(event, e.CheckpointSaved)]
    if saved != sorted(set(saved)):
        faults.append(f"checkpoint_saved: expected rising steps, got {saved}")
    finished = [event.steps for event in events if isinstance(event, e.TrainingFinished)]
    if finished != [last_step]:
        faults.append(f"training_finished: expected once, after {last_step} steps, got {finished}")
    return faults


def _faults_of_resume(events: Sequence[e.Event]) -> list[str]:
    resumed = [(place, event) for place, event in enumerate(events) if isinstance(event, e.TrainingResumed)]
    if len(resumed) != 1:
        return [f"training_resumed: expected exactly one, got {len(resumed)}"]
    place, resume = resumed[0]
    before = [event for event in events[:place] if isinstance(event, e.CheckpointSaved)]
    if not before:
        return ["training_resumed: expected a checkpoint_saved before it"]
    last = before[-1]
    if (resume.step, resume.checkpoint) != (last.step, last.artifact.sha256):
        return [f"training_resumed: expected the last checkpoint, of step {last.step}, got step {resume.step}"]
    return [] if resume.fidelity == "exact" else [f"training_resumed: expected exact, got {resume.fidelity}"]


def _faults_of_parent(events: Sequence[e.Event], parent: e.ModelRegistered) -> list[str]:
    ref, faults = ModelRef(name=parent.name, version=parent.version), []
    resolved = [event.parent for event in events if isinstance(event, e.ParentResolved)]
    if [(found.model, found.digest) for found in resolved] != [(ref, parent.digest)]:
        told = ", ".join(f"{found.model} with digest {found.digest[:12]}" for found in resolved)
        wanted = f"{ref} with digest {parent.digest[:12]}"
        faults.append(f"parent_resolved: expected exactly one, that names {wanted}, got {told or 'none'}")
    for child in (event for event in events if isinstance(event, e.ModelRegistered)):
        if (child.parent, child.root, child.depth) != (ref, ref, 1):
            told = f"parent {child.parent}, root {child.root}, depth {child.depth}"
            faults.append(f"model_registered: expected parent and root {ref} and depth 1, got {told}")
    return faults


def _faults_of_features(events: Sequence[e.Event]) -> list[str]:
    faults = []
    asked = sum(isinstance(event, e.FeaturesRequested) for event in events)
    if asked:
        faults.append(f"features_requested: expected none, Feast has every feature, got {asked}")
    shared = [event.shared for event in events if isinstance(event, e.DataFrozen)]
    equal = [rows is not None and rows.rows > 0 and rows.found_digest == rows.parent_digest for rows in shared]
    if equal != [True]:
        faults.append(f"data_frozen: expected exactly one, with rows equal to the parent's, got {shared}")
    return faults


def _faults_of_start(events: Sequence[e.Event], parent_steps: int) -> list[str]:
    started = [event for event in events if isinstance(event, e.TrainingStarted)]
    if [event.step for event in started] != [parent_steps]:
        told = [event.step for event in started]
        return [f"training_started: expected once, at the parent's step {parent_steps}, got {told}"]
    inheritance = started[0].inheritance
    if inheritance is None or inheritance.reset:
        return [f"training_started: expected everything carried over, got {inheritance}"]
    return []
