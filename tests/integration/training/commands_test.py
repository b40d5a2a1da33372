"""What users order of a run that is being worked on, over Kafka, all parts real; every claim is read from the log."""

import time

import pytest
from mlflow import MlflowClient

from training_fsm.domain import events as e
from training_fsm.domain.commands import CancelRun, ExtendRun, OverrideRejection, PauseRun, ResumeRun
from training_fsm.domain.run import Run
from training_fsm.domain.states import State

from .conftest import Family

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:pydantic")

LONG = {
    "seed": 7,
    "total_timesteps": 16_384,
    "n_envs": 2,
    "net_arch": [16],
    "checkpoint_every_timesteps": 2_048,
    "hyperparameters": {"n_steps": 128, "batch_size": 64, "n_epochs": 5},
}
WHO = {"actor": "somebody", "why": "a test"}


def _types(family: Family, run_id: str) -> list[str]:
    return [logged.type for logged in family.history(run_id)]


def _events_without_checkpoints(family: Family, run_id: str, after: str) -> list[str]:
    kinds = [kind for kind in _types(family, run_id) if kind != "checkpoint_saved"]
    return kinds[kinds.index(after) :]


def test_a_pause_stands_at_a_checkpoint_and_an_extension_is_trained_after_it(family: Family) -> None:
    """Paused, the run is nobody's; extended and resumed, it goes on exactly and ends at the new step, judged once."""
    family.ensure_workers(1)
    family.request("paused", model="paused-ppo", agent=LONG)
    family.wait("paused", lambda run: bool(run.checkpoints))
    family.send(PauseRun(run_id="paused", **WHO))
    paused = family.wait("paused", lambda run: run.state is State.PAUSED)
    assert paused.worker is None
    (stood,) = [x for logged in family.history("paused") if isinstance(x := logged.event, e.RunPaused)]
    assert (stood.actor, stood.why, stood.step) == ("somebody", "a test", paused.checkpoints[-1].step)
    assert stood.step < 16_384
    version = paused.version
    time.sleep(2)
    assert family.wait("paused", lambda _: True).version == version, "nobody works on it"

    family.send(ExtendRun(run_id="paused", additional_timesteps=4_096, **WHO))
    family.wait("paused", lambda run: run.last_step == 20_480)
    family.send(ResumeRun(run_id="paused", **WHO))
    run = family.registered("paused")
    assert _events_without_checkpoints(family, "paused", "pause_requested") == [
        "pause_requested",
        "run_paused",
        "run_extended",
        "run_resumed",
        "run_claimed",
        "training_resumed",
        "training_finished",
        "evaluation_finished",
        "registration_intended",
        "model_registered",
    ]
    (resumed,) = [x for logged in family.history("paused") if isinstance(x := logged.event, e.TrainingResumed)]
    assert (resumed.step, resumed.fidelity) == (stood.step, "exact")
    assert run.checkpoints[-1].step == 20_480
    steps = [x.step for logged in family.history("paused") if isinstance(x := logged.event, e.CheckpointSaved)]
    assert steps == sorted(set(steps)), "no step is stored twice"


def test_an_extension_and_a_pause_taken_back_reach_a_worker_in_the_middle_of_training(family: Family) -> None:
    """The same claim goes on: one worker, one token, and the end is the new one."""
    family.ensure_workers(1)
    family.request("longer", model="longer-ppo", agent=LONG)
    family.wait("longer", lambda run: bool(run.checkpoints))
    family.send(ExtendRun(run_id="longer", additional_timesteps=2_048, **WHO))
    family.send(PauseRun(run_id="longer", **WHO))
    family.send(ResumeRun(run_id="longer", **WHO))
    run = family.registered("longer")
    kinds = _types(family, "longer")
    for once in ("run_extended", "pause_requested", "run_resumed", "training_finished", "model_registered"):
        assert kinds.count(once) == 1, once
    claims = [x.token for logged in family.history("longer") if isinstance(x := logged.event, e.RunClaimed)]
    if "run_paused" not in kinds:  # the worker may have stood still between the two wishes
        assert claims == [1]
    assert run.checkpoints[-1].step == 18_432
    finished = next(x for logged in family.history("longer") if isinstance(x := logged.event, e.TrainingFinished))
    assert finished.steps == 18_432


def test_a_rejected_model_is_trained_on_and_then_registered_under_somebody_s_name(family: Family) -> None:
    """Extended it is judged again; overridden it is registered with the evaluation that it failed."""
    family.ensure_workers(1)
    hopeless = {"gate": [{"metric": "sharpe", "min": 99.0}]}
    family.request("poor", model="poor-ppo", agent=LONG | {"total_timesteps": 1_024}, evaluation=hopeless)
    family.wait("poor", lambda run: run.state is State.REJECTED)
    family.send(ExtendRun(run_id="poor", additional_timesteps=1_024, **WHO))

    def rejected_again(run: Run) -> bool:
        return run.state is State.REJECTED and run.checkpoints[-1].step == 2_048

    family.wait("poor", rejected_again)
    assert _types(family, "poor").count("evaluation_finished") == 2
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    assert not client.search_model_versions("name='poor-ppo'")

    family.send(OverrideRejection(run_id="poor", **WHO))
    family.wait("poor", lambda run: run.overridden is not None)
    run = family.registered("poor")
    assert run.overridden == e.RejectionOverridden(**WHO)
    assert _types(family, "poor").count("evaluation_finished") == 2, "it is not judged a third time"
    (version,) = client.search_model_versions("name='poor-ppo'")
    assert version.tags["training_fsm.gate_passed"] == "false"
    assert version.tags["training_fsm.overridden_by"] == "somebody"


def test_a_cancel_reaches_a_paused_run_and_its_tracking_run_ends(family: Family) -> None:
    """Nobody holds it: the reconciler ends the tracking run that its last worker left open."""
    family.ensure_workers(1)
    family.request("stopped", model="stopped-ppo", agent=LONG)
    family.wait("stopped", lambda run: bool(run.checkpoints))
    family.send(PauseRun(run_id="stopped", **WHO))
    run = family.wait("stopped", lambda run: run.state is State.PAUSED)
    family.send(CancelRun(run_id="stopped", **WHO))
    family.wait("stopped", lambda run: run.state is State.CANCELLED)
    client = MlflowClient(family.settings.mlflow_tracking_uri)
    assert run.tracking_run_id is not None
    deadline = time.monotonic() + 60
    while client.get_run(run.tracking_run_id).info.status != "KILLED":
        assert time.monotonic() < deadline, "its tracking run stays open"
        time.sleep(0.2)
