"""The command line `training-fsm`. Nothing heavy is imported before a command runs."""

from typing import Annotated

import typer

from training_fsm.cli import (
    admin_commands,
    audit_commands,
    contract_commands,
    demo_command,
    letter_commands,
    model_commands,
    role_commands,
    run_commands,
    up_command,
)
from training_fsm.cli.context import Home
from training_fsm.cli.errors import ReportingGroup

app = typer.Typer(
    cls=ReportingGroup,
    help="Training runs for deep-RL trading agents: event-sourced, crash-safe, on Kafka and Postgres.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they could show a password
)
app.add_typer(run_commands.app, name="run")
app.add_typer(model_commands.app, name="model")
app.add_typer(audit_commands.app, name="audit")
app.add_typer(contract_commands.app, name="contracts")
app.add_typer(letter_commands.app, name="dlq")
app.add_typer(admin_commands.app, name="admin")
demo_command.register(app)
up_command.register(app)
role_commands.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("training-fsm"))
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    home: Home = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = home


def main() -> None:
    """Entry point."""
    app()
