"""A request as it would be sent, for people."""

import json
from collections.abc import Iterator

import yaml
from rich.text import Text

from training_fsm.cli.output import make_console, printable
from training_fsm.cli.request_file import RequestFile
from training_fsm.domain.changes import changeable
from training_fsm.domain.commands import RequestTraining
from training_fsm.domain.continuation import UNCHANGEABLE
from training_fsm.domain.features import definitions_hash
from training_fsm.domain.model import Model
from training_fsm.domain.request import MERGED, ContinueRequest, TrainingRequest


class ResolvedRequest(Model):
    """What `validate` found: the request with its defaults, and what follows from it."""

    run_id: str | None
    """None: a new one is made up when it is sent."""
    request: TrainingRequest | ContinueRequest
    feature_config_hash: str | None
    """This and what comes below is the parent's to say in mode continue: None."""
    whole_timesteps: int | None
    """total_timesteps rounded up to whole rollouts."""
    embargo_bars: int | None
    """Bars left out between two parts of the split."""


def resolved_request(asked: RequestFile) -> ResolvedRequest:
    """The shape that `validate --json` prints."""
    request = asked.request
    whole = request if isinstance(request, TrainingRequest) else None
    return ResolvedRequest(
        run_id=asked.run_id,
        request=request,
        feature_config_hash=None if whole is None else definitions_hash(whole.features.feature_definitions),
        whole_timesteps=None if whole is None else whole.agent.whole_timesteps,
        embargo_bars=None if whole is None else whole.embargo_bars,
    )


def print_request(shape: ResolvedRequest) -> None:
    """The request as YAML that `submit` takes, and as comments what follows from it."""
    request = shape.request
    fields = {"type": RequestTraining.type} | ({"run_id": shape.run_id} if shape.run_id else {})
    given = json.loads(request.model_dump_json())
    if isinstance(request, ContinueRequest):
        fields |= {name: given.pop(name) for name in ("mode", "parent")}
    console = make_console()
    text = yaml.safe_dump(fields | given, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    console.print(printable(text.rstrip()), soft_wrap=True)
    if isinstance(request, ContinueRequest):
        notes = _notes_on_continuation(request)
    else:
        notes = iter(
            (
                f"feature config hash: {shape.feature_config_hash}",
                f"environment steps in whole rollouts: {shape.whole_timesteps:,}",
                f"embargo between the parts: {shape.embargo_bars} bars",
            )
        )
    for line in notes:
        console.print(Text(printable(f"# {line}"), style="green"), soft_wrap=True)


def _notes_on_continuation(request: ContinueRequest) -> Iterator[str]:
    name = request.model_name
    yield f"what is absent is the parent's; the model's name: {name or 'the parent says it'}"
    given = changeable(TrainingRequest, request.changes, MERGED)
    steps = given.get("agent.total_timesteps")
    asked = f"{steps:,}" if isinstance(steps, int) else "as many as the parent asked for"
    yield f"environment steps of this run, on top of the parent's: {asked}, rounded up to whole rollouts"
    fixed = [path for path in given if path in UNCHANGEABLE]
    if fixed or "features" in request.changes:
        same = ", ".join([*fixed, *(["features"] if "features" in request.changes else [])])
        yield f"must be as the parent's, which is looked at before training: {same}"
    if request.accept_drift:
        yield "trains also if the feature store now gives other values for the parent's bars"
