"""`training-fsm run …`: ask for runs, stop them, look at them."""

from typing import TYPE_CHECKING, Annotated

import typer

from training_fsm.cli.context import AsJson, Home, opened_log, resolved, settings_of
from training_fsm.cli.errors import BadInput, NotSo
from training_fsm.domain.states import State

if TYPE_CHECKING:
    from pathlib import Path

    from training_fsm.domain.commands import Command
    from training_fsm.messaging.command_sender import Sent
    from training_fsm.settings import Settings

app = typer.Typer(help="Ask for training runs, stop them, look at them.", no_args_is_help=True)

File = Annotated[str, typer.Argument(metavar="FILE", help="Request in YAML or JSON; - reads stdin.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, or a beginning that only one run has.")]
Why = Annotated[str, typer.Option("--why", help="A reason, for the log.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many, newest first.")]


@app.command()
def validate(file: File, as_json: AsJson = False) -> None:
    """Check a request and show what would be sent, defaults filled in."""
    from training_fsm.cli.output import print_json
    from training_fsm.cli.request_file import read_request
    from training_fsm.cli.request_output import print_request, resolved_request

    shape = resolved_request(read_request(file))
    if as_json:
        print_json(shape)
    else:
        print_request(shape)


@app.command()
def submit(
    ctx: typer.Context,
    file: File,
    run_id: Annotated[str | None, typer.Option("--run-id", help="The run's id; a new one where absent.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; exit 0 only for a registered model.")] = False,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Send a request and print the id of its run."""
    import re
    import uuid

    from training_fsm.cli.request_file import read_request
    from training_fsm.domain.commands import RUN_ID, RequestTraining

    asked = read_request(file)
    if run_id is not None and not re.fullmatch(RUN_ID, run_id):
        raise BadInput(f"--run-id: expected 1 to 64 letters, digits, '.', '_' or '-', got {run_id!r}")
    if run_id and asked.run_id and run_id != asked.run_id:
        raise BadInput(f"--run-id: {run_id} differs from run_id: {asked.run_id} in {file}")
    settings = settings_of(ctx, home)
    chosen = run_id or asked.run_id or str(uuid.uuid4())
    sent = _send(settings, RequestTraining(run_id=chosen, request=asked.request))
    _print_sent(sent, as_json=as_json)
    if not wait:
        return
    from training_fsm.cli import watch as watching

    with opened_log(settings) as log:
        watching.await_outcome(log, sent)
        watching.exit_with(watching.follow(log, chosen, as_json=as_json))


@app.command()
def cancel(ctx: typer.Context, run: RunId, why: Why = "", as_json: AsJson = False, home: Home = None) -> None:
    """Stop a run for good."""
    from training_fsm.domain.commands import CancelRun

    _order(ctx, home, run, CancelRun, as_json=as_json, why=why)


@app.command()
def pause(ctx: typer.Context, run: RunId, why: Why = "", as_json: AsJson = False, home: Home = None) -> None:
    """Stop a training at its next checkpoint, until it is resumed."""
    from training_fsm.domain.commands import PauseRun

    _order(ctx, home, run, PauseRun, as_json=as_json, why=why)


@app.command()
def resume(ctx: typer.Context, run: RunId, why: Why = "", as_json: AsJson = False, home: Home = None) -> None:
    """Let a paused training go on."""
    from training_fsm.domain.commands import ResumeRun

    _order(ctx, home, run, ResumeRun, as_json=as_json, why=why)


@app.command()
def retry(ctx: typer.Context, run: RunId, why: Why = "", as_json: AsJson = False, home: Home = None) -> None:
    """Send a failed run back to the state it failed in."""
    from training_fsm.domain.commands import RetryRun

    _order(ctx, home, run, RetryRun, as_json=as_json, why=why)


@app.command()
def extend(
    ctx: typer.Context,
    run: RunId,
    additional_timesteps: Annotated[int, typer.Argument(metavar="STEPS", help="So many environment steps more.")],
    why: Why = "",
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Train for more steps than were asked for; a rejected run trains on and is judged again."""
    from training_fsm.domain.commands import ExtendRun

    _order(ctx, home, run, ExtendRun, as_json=as_json, why=why, additional_timesteps=additional_timesteps)


@app.command()
def override(
    ctx: typer.Context,
    run: RunId,
    why: Annotated[str, typer.Option("--why", help="The reason; it stays with the model.")],
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Register a rejected model all the same, under your name."""
    from training_fsm.domain.commands import OverrideRejection

    _order(ctx, home, run, OverrideRejection, as_json=as_json, why=why)


@app.command("list")
def list_runs(
    ctx: typer.Context,
    state: Annotated[State | None, typer.Option("--state", case_sensitive=False, help="Only these.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """List runs, the newest request first."""
    from training_fsm.cli.output import print_json_list, print_runs

    with opened_log(settings_of(ctx, home)) as log:
        runs = log.runs(state, limit)
    if as_json:
        print_json_list(runs)
    else:
        print_runs(runs)


@app.command()
def show(ctx: typer.Context, run: RunId, as_json: AsJson = False, home: Home = None) -> None:
    """Show a run as it stands."""
    from training_fsm.cli.output import print_details, print_json

    with opened_log(settings_of(ctx, home)) as log:
        details = log.run(resolved(log, run))
    assert details is not None, "a resolved run is there"
    if as_json:
        print_json(details)
    else:
        print_details(details)


@app.command()
def watch(ctx: typer.Context, run: RunId, as_json: AsJson = False, home: Home = None) -> None:
    """Follow a run to its end; exit 0 only for a registered model. With --json one event a line."""
    from training_fsm.cli import watch as watching

    with opened_log(settings_of(ctx, home)) as log:
        watching.exit_with(watching.follow(log, resolved(log, run), as_json=as_json))


@app.command()
def history(
    ctx: typer.Context,
    run: RunId,
    payload: Annotated[bool, typer.Option("--payload", help="Every event with all that it says.")] = False,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Show every event of a run."""
    from training_fsm.cli.output import history_entry, print_history, print_json_list, print_payloads

    with opened_log(settings_of(ctx, home)) as log:
        run_id = resolved(log, run)
        if as_json:
            print_json_list([history_entry(run_id, logged) for logged in log.history(run_id)])
        elif payload:
            print_payloads(log.history(run_id))
        else:
            print_history(log.history(run_id))


def _order(
    ctx: typer.Context,
    home: "Path | None",
    run: str,
    command: "type[Command]",
    *,
    as_json: bool,
    **fields: str | int,
) -> None:
    """Send a command about a run that is there, in the name of whoever types it."""
    from pydantic import ValidationError

    from training_fsm.domain.explain import explain
    from training_fsm.messaging.command_sender import actor

    settings = settings_of(ctx, home)
    with opened_log(settings) as log:
        run_id = resolved(log, run)
    try:
        ordered = command.model_validate({"run_id": run_id, "actor": actor(), **fields})
    except ValidationError as error:
        raise BadInput(*explain(error)) from error
    _print_sent(_send(settings, ordered), as_json=as_json)


def _send(settings: "Settings", command: "Command") -> "Sent":
    from training_fsm.domain.errors import OutsideUnavailable
    from training_fsm.messaging.command_sender import send_command

    try:
        return send_command(settings, command)
    except OutsideUnavailable as error:
        hint = "`training-fsm up` starts everything on this machine; TRAINING_FSM_BOOTSTRAP_SERVERS names another place"
        raise NotSo(str(error), hint) from error
    except ValueError as error:
        raise BadInput(str(error)) from error


def _print_sent(sent: "Sent", *, as_json: bool) -> None:
    if as_json:
        import dataclasses
        import json

        print(json.dumps(dataclasses.asdict(sent)))
    else:
        print(sent.run_id)
