"""The demo's first act: a model from scratch, over the death of its worker."""

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from training_fsm.cli.context import opened_log
from training_fsm.cli.demo.checks import faults_of_kafka, faults_of_killed, require
from training_fsm.cli.demo.commands import COMMAND_TIMEOUT_S, command, heading, send
from training_fsm.cli.demo.following import Followed, follow
from training_fsm.cli.demo.published import published_versions
from training_fsm.cli.demo.results import LoadedModel, print_backtest, print_model
from training_fsm.cli.request_file import read_request
from training_fsm.domain import events as e
from training_fsm.local.stack import LocalStack

REQUEST = Path(__file__).with_name("request.yaml")
LOADER = Path(__file__).with_name("load_model.py")


def train_over_a_death(stack: LocalStack, console: Console) -> Followed:
    """Send the request, follow the run over the death of its worker, and show what came of it.

    Raises NotSo with every line of what is not as it must be.
    """
    settings = stack.settings
    run_id = send(settings, read_request(str(REQUEST)).request, console)
    console.print(
        f"run {run_id}; its gate is lax on purpose: this shows the machine, not a money-maker", soft_wrap=True
    )
    with opened_log(settings) as log:
        followed = follow(stack, log, run_id, console, kill=True)
    faults = followed.faults_of_end()
    if followed.killed_worker is None:
        faults.append("its worker: expected to be killed, but training was over before")
    console.print(_take_over(followed), soft_wrap=True)
    published = published_versions(settings, run_id, followed.details.version)
    faults += faults_of_killed(followed.versions, followed.events, followed.details.last_step or 0)
    faults += faults_of_kafka(published, followed.versions)

    heading(console, "the backtest, on bars that no training has seen")
    evaluation = followed.details.run.evaluation
    if evaluation is not None:
        print_backtest(console, evaluation)
    registered = followed.details.run.registered
    if registered is not None:
        heading(console, "the model, read back from MLflow and loaded without this package")
        faults += _show_model(console, settings.mlflow_tracking_uri, registered)
    heading(console, f"training-fsm run history {run_id[:8]}")
    faults += command(settings.home, "run", "history", run_id)
    require(faults)
    return followed


def _take_over(followed: Followed) -> str:
    """How long the run was nobody's, and how long it stood still."""
    after = [
        (logged.occurred_at.timestamp() - followed.killed_at, logged.event)
        for logged in followed.history
        if followed.killed_at is not None and logged.occurred_at.timestamp() > followed.killed_at
    ]
    claimed = [
        f"claimed {s:.1f} s after the kill by {event.worker}" for s, event in after if isinstance(event, e.RunClaimed)
    ]
    resumed = [f"training again after {s:.1f} s" for s, event in after if isinstance(event, e.TrainingResumed)]
    return "taken over: " + (", ".join((*claimed, *resumed)) or "no")


def _show_model(console: Console, tracking_uri: str, registered: e.ModelRegistered) -> list[str]:
    argv = [sys.executable, "-I", str(LOADER), tracking_uri, registered.name, "candidate"]
    loaded = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if loaded.returncode != 0:
        return [f"the model: does not load in another process: {loaded.stderr.strip().splitlines()[-1:]}"]
    model = LoadedModel.model_validate(json.loads(loaded.stdout.splitlines()[-1]))
    print_model(console, model)
    if model.version != registered.version or "candidate" not in model.aliases:
        return [f"the model: expected version {registered.version} as candidate, got {model.version} {model.aliases}"]
    return [] if model.prediction else ["the model: expected a prediction, got none"]
