"""The demo's second act: the model that was registered is continued, and both are shown as a family."""

import json

from rich.console import Console

from training_fsm.cli.context import opened_log
from training_fsm.cli.demo.checks import faults_of_continued, faults_of_kafka, faults_of_registry, require
from training_fsm.cli.demo.commands import command, heading, send
from training_fsm.cli.demo.following import Followed, follow
from training_fsm.cli.demo.published import published_versions
from training_fsm.cli.demo.registry import runs_of_versions
from training_fsm.cli.event_summary import inheritance_words, shared_words, summary
from training_fsm.domain import events as e
from training_fsm.domain.request import ContinueRequest
from training_fsm.local.stack import LocalStack

MORE_TIMESTEPS = 40_960


def continue_it(stack: LocalStack, console: Console, first: Followed) -> Followed:
    """Send a request that continues the first act's model, follow the run to its end, and draw the family tree.

    Raises NotSo with every line of what is not as it must be.
    """
    settings, parent, first_steps = stack.settings, first.details.run.registered, first.details.last_step
    assert parent is not None, "the first act has registered a model"
    assert first_steps is not None, "the first act has trained"
    fields = {
        "mode": "continue",
        "parent": f"models:/{parent.name}/{parent.version}",
        "agent": {"total_timesteps": MORE_TIMESTEPS},
    }
    heading(console, "the second act: the same model, trained further")
    console.print(f"all that it says: {json.dumps(fields)}", soft_wrap=True)
    run_id = send(settings, ContinueRequest.model_validate(fields), console)
    with opened_log(settings) as log:
        followed = follow(stack, log, run_id, console, kill=False)
    for line in _said(followed):
        console.print(line, soft_wrap=True)
    faults = followed.faults_of_end()
    published = published_versions(settings, run_id, followed.details.version)
    last_step = first_steps + MORE_TIMESTEPS
    faults += faults_of_continued(followed.versions, followed.events, last_step, parent, first_steps)
    faults += faults_of_kafka(published, followed.versions)
    registered = (parent, first.details.run_id), (followed.details.run.registered, run_id)
    expected = {model.version: owner for model, owner in registered if model is not None}
    faults += faults_of_registry(runs_of_versions(settings.mlflow_tracking_uri, parent.name), expected)
    heading(console, f"training-fsm model lineage {parent.name}")
    faults += command(settings.home, "model", "lineage", parent.name)
    require(faults)
    return followed


def _said(followed: Followed) -> list[str]:
    """What the events tell of the parent's training, of its data, and of the question to ingest that there was not."""
    lines = []
    for event in followed.events:
        match event:
            case e.TrainingStarted(inheritance=inheritance) if inheritance is not None:
                lines.append(f"from the parent: {inheritance_words(inheritance)}")
            case e.DataFrozen(shared=shared) if shared is not None:
                lines.append(f"drift proof: {shared_words(shared)}")
            case e.FeaturesReady(request_id=e.FOUND_IN_FEAST):
                lines.append(f"features: {summary(event)}")
            case _:
                pass
    return lines
