"""The demo from its first line to its last."""

from rich.console import Console

from training_fsm.cli.demo.checks import require
from training_fsm.cli.demo.commands import command, heading
from training_fsm.cli.demo.first_act import train_over_a_death
from training_fsm.cli.demo.second_act import continue_it
from training_fsm.local.stack import LocalStack


def tell(stack: LocalStack, console: Console) -> None:
    """Train a model over the death of its worker, continue it, and check both runs.

    Raises NotSo with every line of what is not as it must be.
    """
    first = train_over_a_death(stack, console)
    second = continue_it(stack, console, first)
    heading(console, "training-fsm audit verify")
    require(command(stack.settings.home, "audit", "verify"))
    heading(console, "all of it is so")
    one, other = len(first.history), len(second.history)
    console.print(
        f"first run: {one} events, versions 1 to {one} without a gap, each of them on Kafka; two claims with rising "
        "tokens; one resume, exact, from the last checkpoint; one model",
        soft_wrap=True,
    )
    console.print(
        f"second run: {other} events, versions 1 to {other} without a gap, each of them on Kafka; it went on at its "
        "parent's last step, with the parent's data, and ingest was not asked; one model, child of the first",
        soft_wrap=True,
    )
