"""Write what the docs repeat of the code: the state diagram in architecture.md and the whole of settings.md.

`make docs` runs it; a test says when it is due.
"""

from pathlib import Path

from training_fsm.domain.machine import arrows
from training_fsm.domain.states import State
from training_fsm.settings import Settings

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- generated: states -->", "<!-- end of generated -->"


def states() -> str:
    """The diagram of what moves a run, and a table of what happens within each state."""
    moves = [(source, event, dest) for source, event, dest in arrows() if source is not dest]
    diagram = [
        f"    {'[*]' if source is State.NEW else source.value} --> {dest.value} : {event}"
        for source, event, dest in moves
    ]
    within = [
        f"| {state.value} | {', '.join(f'`{event}`' for source, event, dest in arrows() if source is dest is state)} |"
        for state in State
        if any(source is dest is state for source, _, dest in arrows())
    ]
    return "\n".join(
        [
            "```mermaid",
            "stateDiagram-v2",
            *diagram,
            "```",
            "",
            "| within | events that leave the state as it is |",
            "|---|---|",
            *within,
        ]
    )


def settings() -> str:
    """Every setting with its variable, its default and what it says of itself."""
    rows = [
        f"| `TRAINING_FSM_{name.upper()}` | {_default(name)} | {' '.join((field.description or '').split())} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            "Generated from `training_fsm/settings.py`. What is not set in the environment is looked up in a file",
            "`.env` of the working folder, then in the `services.json` that a running `training-fsm up` writes into",
            "its home folder, and has its default otherwise. `--home` wins over `TRAINING_FSM_HOME`.",
            "",
            "| variable | default | what it is |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if name == "home":
        return "the user's data folder"
    if name == "worker_name":
        return "the host's name"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value is None or value == "" else f"`{value}`"


def architecture(current: str) -> str:
    """The page with its generated part made anew."""
    head, _, rest = current.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{states()}\n{END}{tail}"


if __name__ == "__main__":
    page = FOLDER / "architecture.md"
    page.write_text(architecture(page.read_text(encoding="utf-8")), encoding="utf-8")
    (FOLDER / "settings.md").write_text(settings(), encoding="utf-8")
