"""`training-fsm model …`: look at what was registered, and at what came from what."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from training_fsm.cli.context import AsJson, Home, opened_database, settings_of
from training_fsm.cli.errors import BadInput, NotSo

if TYPE_CHECKING:
    from training_fsm.domain.facts import ModelRef
    from training_fsm.store.model_reads import PostgresModelReads

app = typer.Typer(
    help="Look at registered models, their lines of descent, and what differs between them.", no_args_is_help=True
)

_WANTED = "NAME, NAME/VERSION, NAME@champion or NAME@candidate"

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_WANTED}; a name alone is its newest version.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many, newest first.")]


class _Named(NamedTuple):
    name: str
    version: int | None
    alias: str | None


@app.command("list")
def list_models(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option("--name", help="Only versions of this model.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """List model versions, the newest first."""
    from training_fsm.cli.model_output import print_versions
    from training_fsm.cli.output import print_json_list
    from training_fsm.store.model_reads import PostgresModelReads

    with opened_database(settings_of(ctx, home)) as engine:
        models = PostgresModelReads(engine)
        versions = models.versions(name, limit)
        if name is not None and not versions:
            raise _unknown(models, name)
    if as_json:
        print_json_list(versions)
    else:
        print_versions(versions)


@app.command()
def show(ctx: typer.Context, model: ModelName, as_json: AsJson = False, home: Home = None) -> None:
    """Show a model version: its line, its data, its settings, and what it was worth."""
    from training_fsm.cli.model_output import ModelDetails, print_model
    from training_fsm.cli.output import print_json
    from training_fsm.store.model_reads import PostgresModelReads

    with opened_database(settings_of(ctx, home)) as engine:
        models = PostgresModelReads(engine)
        ref = _found(models, model)
        relatives = models.relatives(ref.name, ref.version)
        run = models.run(ref)
    version = next(relative for relative in relatives if relative.ref == ref)
    assert run is not None, "a version that was found has its run"
    children = tuple(relative.ref for relative in relatives if relative.parent == ref)
    details = ModelDetails(version=version, children=children, run=run)
    if as_json:
        print_json(details)
    else:
        print_model(details)


@app.command()
def lineage(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{_WANTED}; a name alone: every line that it is in.")],
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Draw the family tree of a model, with data, features, steps and test metrics side by side."""
    from training_fsm.cli.model_output import print_family
    from training_fsm.cli.model_tree import family
    from training_fsm.cli.output import print_json_list
    from training_fsm.store.model_reads import PostgresModelReads

    named = _parsed(model)
    with opened_database(settings_of(ctx, home)) as engine:
        models = PostgresModelReads(engine)
        ref = None if named.alias is None and named.version is None else _found(models, model)
        relatives = models.relatives(named.name, None if ref is None else ref.version)
        if not relatives:
            raise _unknown(models, named.name)
    rows = tuple(family(relatives, ref))
    if as_json:
        print_json_list([row.relative for row in rows])
    else:
        print_family(rows)


@app.command()
def compare(ctx: typer.Context, a: ModelName, b: ModelName, as_json: AsJson = False, home: Home = None) -> None:
    """Show what differs between two models in descent, data, features, settings and test metrics."""
    from training_fsm.cli.model_output import print_comparison
    from training_fsm.cli.model_tree import family
    from training_fsm.cli.output import print_json
    from training_fsm.service.model_comparison import Place
    from training_fsm.service.model_comparison import compare as compared
    from training_fsm.store.model_reads import PostgresModelReads

    with opened_database(settings_of(ctx, home)) as engine:
        models = PostgresModelReads(engine)
        refs = _found(models, a), _found(models, b)
        runs = [models.run(ref) for ref in refs]
        relatives = [relative for ref in refs for relative in models.relatives(ref.name, ref.version)]
    places = {row.relative.ref: Place(row.relative.parent, row.relative.generation) for row in family(relatives)}
    first, second = runs
    assert first is not None, "a version that was found has its run"
    assert second is not None, "a version that was found has its run"
    comparison = compared(first, second, places)
    if as_json:
        print_json(comparison)
    else:
        print_comparison(comparison)


def _parsed(text: str) -> _Named:
    """A model as people name it; `models:/` before it, as in requests, does no harm."""
    from training_fsm.service.model_lifecycle_service import CANDIDATE, CHAMPION

    match = re.fullmatch(r"(models:/)?(?P<name>[^/@:]+)(/(?P<version>[1-9][0-9]{0,8})|@(?P<alias>[^/@]+))?", text)
    if match is None or match["alias"] not in (None, CANDIDATE, CHAMPION):
        raise BadInput(f"expected {_WANTED}, got {text!r}")
    return _Named(match["name"], int(match["version"]) if match["version"] else None, match["alias"])


def _found(models: "PostgresModelReads", text: str) -> "ModelRef":
    """The version that a text names. Raises NotSo that says what there is instead."""
    from training_fsm.domain.facts import ModelRef
    from training_fsm.service.model_lifecycle_service import CHAMPION

    name, version, alias = _parsed(text)
    there = models.numbers(name)
    if not there.versions:
        raise _unknown(models, name)
    newest = there.versions[-1]
    if alias == CHAMPION:
        if there.champion is None:
            raise NotSo(f"{name} has no champion yet; its newest version is {newest}")
        version = there.champion
    version = version or newest
    if version not in there.versions:
        raise NotSo(f"there is no version {version} of {name} in this log; there is {_runs_of(there.versions)}")
    return ModelRef(name=name, version=version)


def _unknown(models: "PostgresModelReads", name: str) -> NotSo:
    """What to say of a name under which nothing is registered."""
    import difflib

    names = models.names()
    if not names:
        return NotSo("no model is registered yet")
    near = difflib.get_close_matches(name, names, n=5) or names[:10]
    more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
    return NotSo(f"there is no model {name} in this log; there is {', '.join(near)}{more}")


def _runs_of(numbers: Sequence[int]) -> str:
    """Ascending numbers as `1 to 4, 6`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
