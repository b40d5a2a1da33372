"""`training-fsm contracts …`: the wire contracts as files."""

from pathlib import Path
from typing import Annotated

import typer

from training_fsm.cli.errors import NotSo

app = typer.Typer(help="The wire contracts as JSON Schemas and an AsyncAPI document.", no_args_is_help=True)


@app.callback()
def _contracts() -> None:
    """Keeps `export` a command of its own: typer gives a group's only command the group's name."""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where they go, or are.")] = Path("contracts"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 where the folder's files differ, and name them.")
    ] = False,
) -> None:
    """Write a JSON Schema of every message that is read or written, and an AsyncAPI document of the topics."""
    from training_fsm.contracts.files import contract_files, differences, write

    files = contract_files()
    try:
        if not check:
            write(folder, files)
        elif wrong := differences(folder, files):
            raise NotSo(*wrong, f"bring them up to date with `training-fsm contracts export {folder}`")
    except (OSError, UnicodeDecodeError) as error:
        raise NotSo(f"{folder}: {error}") from error
    print(f"{folder}: {len(files)} files {'are current' if check else 'written'}")
