"""A request as it would be sent, for people."""

import json

import yaml
from rich.text import Text

from training_fsm.cli.output import make_console, printable
from training_fsm.cli.request_file import RequestFile
from training_fsm.domain.commands import RequestTraining
from training_fsm.domain.features import definitions_hash
from training_fsm.domain.model import Model
from training_fsm.domain.request import TrainingRequest


class ResolvedRequest(Model):
    """What `validate` found: the request with its defaults, and what follows from it."""

    run_id: str | None
    """None: a new one is made up when it is sent."""
    request: TrainingRequest
    feature_config_hash: str
    whole_timesteps: int
    """total_timesteps rounded up to whole rollouts."""
    embargo_bars: int
    """Bars left out between two parts of the split."""


def resolved_request(asked: RequestFile) -> ResolvedRequest:
    """The shape that `validate --json` prints."""
    request = asked.request
    return ResolvedRequest(
        run_id=asked.run_id,
        request=request,
        feature_config_hash=definitions_hash(request.features.feature_definitions),
        whole_timesteps=request.agent.whole_timesteps,
        embargo_bars=request.embargo_bars,
    )


def print_request(shape: ResolvedRequest) -> None:
    """The request as YAML that `submit` takes, and as comments what follows from it."""
    fields = {"type": RequestTraining.type} | ({"run_id": shape.run_id} if shape.run_id else {})
    fields |= json.loads(shape.request.model_dump_json())
    console = make_console()
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    console.print(printable(text.rstrip()), soft_wrap=True)
    for line in (
        f"feature config hash: {shape.feature_config_hash}",
        f"environment steps in whole rollouts: {shape.whole_timesteps:,}",
        f"embargo between the parts: {shape.embargo_bars} bars",
    ):
        console.print(Text(f"# {line}", style="green"), soft_wrap=True)
