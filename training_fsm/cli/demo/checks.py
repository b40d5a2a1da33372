"""What must be so in the log of a run whose worker was killed once, and on Kafka."""

from collections.abc import Sequence

from training_fsm.domain import events as e


def faults_of_log(versions: Sequence[int], events: Sequence[e.Event], whole_timesteps: int) -> list[str]:
    """Everything in a run's history that is not as one killed and one resuming worker leave it, in words."""
    faults = []
    if list(versions) != list(range(1, len(events) + 1)):
        faults.append(f"versions: expected 1 to {len(events)} without a gap, got {list(versions)}")
    registered = [event for event in events if isinstance(event, e.ModelRegistered)]
    if len(registered) != 1 or not isinstance(events[-1], e.ModelRegistered):
        faults.append(f"model_registered: expected exactly one, as the last event, got {len(registered)}")
    claims = [event for event in events if isinstance(event, e.RunClaimed)]
    if [claim.token for claim in claims] != [1, 2] or len({claim.worker for claim in claims}) != 2:
        told = [(claim.token, claim.worker) for claim in claims]
        faults.append(f"run_claimed: expected tokens 1 and 2 of two workers, got {told}")
    faults += _faults_of_resume(events)
    saved = [event.step for event in events if isinstance(event, e.CheckpointSaved)]
    if saved != sorted(set(saved)):
        faults.append(f"checkpoint_saved: expected rising steps, got {saved}")
    finished = [event.steps for event in events if isinstance(event, e.TrainingFinished)]
    if finished != [whole_timesteps]:
        faults.append(f"training_finished: expected once, after {whole_timesteps} steps, got {finished}")
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


def faults_of_kafka(published: Sequence[int], versions: Sequence[int]) -> list[str]:
    """Whether the versions read from the events topic, repeats dropped, are those of the log in their order."""
    seen, expected = list(dict.fromkeys(published)), list(versions)
    return [] if seen == expected else [f"events topic: expected versions {expected}, got {seen}"]
