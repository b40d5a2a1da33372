"""The demo from its first line to its last."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from training_fsm.cli.context import opened_log
from training_fsm.cli.demo.checks import faults_of_kafka, faults_of_log
from training_fsm.cli.demo.following import Followed, follow
from training_fsm.cli.demo.published import published_versions
from training_fsm.cli.demo.results import LoadedModel, print_backtest, print_model
from training_fsm.cli.errors import NotSo
from training_fsm.cli.request_file import read_request
from training_fsm.domain import events as e
from training_fsm.domain.commands import RequestTraining
from training_fsm.domain.states import State
from training_fsm.local.stack import LocalStack
from training_fsm.messaging.command_sender import send_command

REQUEST = Path(__file__).with_name("request.yaml")
LOADER = Path(__file__).with_name("load_model.py")
COMMAND_TIMEOUT_S = 120


def tell(stack: LocalStack, console: Console) -> None:
    """Send the request, follow the run over the death of its worker, and show what came of it.

    Raises NotSo with every line of what is not as it must be.
    """
    settings = stack.settings
    request = read_request(str(REQUEST)).request
    run_id = str(uuid.uuid4())
    sent = send_command(settings, RequestTraining(run_id=run_id, request=request))
    console.print(f"request sent onto Kafka: topic {sent.topic}, partition {sent.partition}, offset {sent.offset}")
    console.print(
        f"run {run_id}; its gate is lax on purpose: this shows the machine, not a money-maker", soft_wrap=True
    )
    with opened_log(settings) as log:
        followed = follow(stack, log, run_id, console)
    faults = _expected_end(followed)
    console.print(_take_over(followed), soft_wrap=True)
    published = published_versions(settings, run_id, followed.details.version)
    versions = [logged.version for logged in followed.history]
    faults += faults_of_log(versions, [logged.event for logged in followed.history], followed.details.last_step or 0)
    faults += faults_of_kafka(published, versions)

    _heading(console, "the backtest, on bars that no training has seen")
    evaluation = followed.details.run.evaluation
    if evaluation is not None:
        print_backtest(console, evaluation)
    registered = followed.details.run.registered
    if registered is not None:
        _heading(console, "the model, read back from MLflow and loaded without this package")
        faults += _show_model(console, settings.mlflow_tracking_uri, registered)
    _heading(console, f"training-fsm run history {run_id[:8]}")
    faults += _command(settings.home, "run", "history", run_id)
    _heading(console, "training-fsm audit verify")
    faults += _command(settings.home, "audit", "verify")
    if faults:
        raise NotSo("the demo did not go as it must:", *(f"  {fault}" for fault in faults))
    events = len(followed.history)
    _heading(console, "all of it is so")
    console.print(
        f"{events} events, versions 1 to {events} without a gap, each of them on Kafka; two claims with rising tokens; "
        f"one resume, exact, from the last checkpoint; one model",
        soft_wrap=True,
    )


def _expected_end(followed: Followed) -> list[str]:
    details = followed.details
    faults = []
    if details.state is not State.REGISTERED:
        why = f": {details.failure}" if details.failure else ""
        faults.append(f"the run: expected {State.REGISTERED.value}, ended in {details.state.value}{why}")
    if followed.killed_worker is None:
        faults.append("its worker: expected to be killed, but training was over before")
    return faults


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


def _command(home: Path, *words: str) -> list[str]:
    """What a user would type; its output goes where ours goes."""
    sys.stdout.flush()
    argv = [sys.executable, "-m", "training_fsm", "--home", str(home), *words]
    code = subprocess.run(argv, timeout=COMMAND_TIMEOUT_S, check=False).returncode
    return [] if code == 0 else [f"training-fsm {' '.join(words)}: expected exit code 0, got {code}"]


def _heading(console: Console, words: str) -> None:
    console.print()
    console.print(Rule(words, align="left"))
