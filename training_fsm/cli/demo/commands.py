"""What the demo does as a user would: it sends requests onto Kafka and types commands."""

import subprocess
import sys
import uuid
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from training_fsm.domain.commands import RequestTraining
from training_fsm.domain.request import ContinueRequest, TrainingRequest
from training_fsm.messaging.command_sender import send_command
from training_fsm.settings import Settings

COMMAND_TIMEOUT_S = 120


def send(settings: Settings, request: TrainingRequest | ContinueRequest, console: Console) -> str:
    """Send a request under a new run id, and return that."""
    run_id = str(uuid.uuid4())
    sent = send_command(settings, RequestTraining(run_id=run_id, request=request))
    console.print(f"request sent onto Kafka: topic {sent.topic}, partition {sent.partition}, offset {sent.offset}")
    return run_id


def command(home: Path, *words: str) -> list[str]:
    """What a user would type; its output goes where ours goes. A fault where it exits with another code than 0."""
    sys.stdout.flush()
    argv = [sys.executable, "-m", "training_fsm", "--home", str(home), *words]
    code = subprocess.run(argv, timeout=COMMAND_TIMEOUT_S, check=False).returncode
    return [] if code == 0 else [f"training-fsm {' '.join(words)}: expected exit code 0, got {code}"]


def heading(console: Console, words: str) -> None:
    """A line across the terminal."""
    console.print()
    console.print(Rule(words, align="left"))
