"""Expected errors become clear lines on stderr and an exit code; a traceback means a fault of ours."""

from collections.abc import Sequence

import typer
from typer.core import TyperGroup


class CliError(Exception):
    """What a user is told instead of a result."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class BadInput(CliError):
    """The command line, a file or a setting is wrong."""

    exit_code = 2


class NotSo(CliError):
    """The input is fine; what was asked for is not there, not reachable, or did not go well."""


def complain(lines: Sequence[str]) -> None:
    """Write lines to stderr, in red where it has colours."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, markup=False)
    for line in lines:
        console.print(Text(line, style="red"), soft_wrap=True)


class ReportingGroup(TyperGroup):
    """Commands whose expected errors are reported, not thrown at the user."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CliError as error:
            complain(error.lines)
            raise typer.Exit(error.exit_code) from error
        except (RuntimeError, OSError):
            raise  # typer's own: exits, aborts, usage errors, broken pipes
        except Exception as error:
            from training_fsm.domain.errors import TrainingFsmError

            if isinstance(error, TrainingFsmError):
                complain([str(error)])
                raise typer.Exit(1) from error
            raise
