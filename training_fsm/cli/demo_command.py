"""`training-fsm demo`: the whole machine in two minutes; a worker dies in the middle, and the model is continued."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from training_fsm.cli.context import Home
from training_fsm.cli.errors import BadInput, complain
from training_fsm.cli.extras import require_extra
from training_fsm.cli.up_command import interruptible, print_services, running

WORKERS = 2
LEASE_S = 4.0
INTERRUPTED = 130

Keep = Annotated[bool, typer.Option("--keep", help="Leave the temporary home folder; a named one always stays.")]


def register(app: typer.Typer) -> None:
    """Add the command to the top level."""
    app.command()(demo)


def demo(ctx: typer.Context, home: Home = None, keep: Keep = False) -> None:
    """Train a model end to end on this machine, kill its worker on the way, continue the model, and check it all.

    Exits 0 only if all of it was so. Takes about two minutes and leaves nothing running.
    """
    require_extra("local")
    from training_fsm.cli.demo.story import tell
    from training_fsm.cli.output import make_console
    from training_fsm.local.stack import StackOptions

    named = home or ctx.find_root().obj
    if isinstance(named, Path) and named.exists() and any(named.iterdir()):
        raise BadInput(f"--home: expected a new or an empty folder, {named} has something in it")
    folder = named.absolute() if isinstance(named, Path) else Path(tempfile.mkdtemp(prefix="training-fsm-demo-"))
    console = make_console()
    options = StackOptions(home=folder, workers=WORKERS, lease_s=LEASE_S)
    started = time.monotonic()
    kept = True  # the logs of a demo that failed are worth something
    try:
        with interruptible(), running(options, console) as stack:
            console.print(f"everything runs, {time.monotonic() - started:.0f} s after the start")
            print_services(console, stack.services, options)
            console.print()
            tell(stack, console)
            kept = keep or named is not None
            console.print("stopping")
    except KeyboardInterrupt as error:
        kept = keep or named is not None
        complain(["interrupted; everything is stopped"])
        raise typer.Exit(INTERRUPTED) from error
    finally:
        if kept:
            console.print(f"the home folder stays: {folder}; `training-fsm up --home {folder}` brings it back")
        else:
            shutil.rmtree(folder)
    console.print(f"demo done in {time.monotonic() - started:.0f} s, nothing left running")
