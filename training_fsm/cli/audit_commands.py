"""`training-fsm audit …`: fold the log again."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from training_fsm.cli.context import AsJson, Home, opened_log, resolved, settings_of
from training_fsm.cli.errors import BadInput, NotSo

if TYPE_CHECKING:
    from training_fsm.ports import Artifacts
    from training_fsm.settings import Settings

app = typer.Typer(
    help="Fold the log again: a run as it was, or whether all is as it was written.", no_args_is_help=True
)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, or a beginning that only one run has.")]
At = Annotated[str | None, typer.Option("--at", help="A time such as 2026-11-24T12:00:00Z; without zone UTC.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="So many events.")]


@app.command()
def replay(
    ctx: typer.Context, run: RunId, at: At = None, version: Version = None, as_json: AsJson = False, home: Home = None
) -> None:
    """Show a run as it was at a time or version, folded from its events."""
    from training_fsm.cli.audit_output import print_replayed
    from training_fsm.service.audit_service import replay as fold

    if at is not None and version is not None:
        raise BadInput("--at and --version: expected one of them")
    moment = None if at is None else _time(at)
    with opened_log(settings_of(ctx, home)) as log:
        run_id = resolved(log, run)
        try:
            replayed = fold(log, run_id, version=version, at=moment)
        except (ValueError, AssertionError) as error:
            raise NotSo(
                f"run {run_id} does not fold: {error}; `training-fsm audit verify {run_id}` says more"
            ) from error
    if replayed is None:
        raise NotSo(f"run {run_id} had no event yet at {at}")
    print_replayed(replayed, as_json=as_json)


@app.command()
def verify(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run; all streams where absent.")] = None,
    artifacts: Annotated[bool, typer.Option(help="Fetch every stored file and check its digest.")] = True,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Check versions, hash chain, states, heads and stored files; exit 1 and name what is off."""
    from training_fsm.cli.audit_output import print_report, telling
    from training_fsm.service.audit_service import verify as check

    settings = settings_of(ctx, home)
    with opened_log(settings) as log:
        candidates = log.matching(run) if run is not None else ()
        # A run whose head is gone is not found by its beginning; its events may still be there.
        run_id = run if run is None or not candidates else resolved(log, run)
        with telling() as tell:
            report = check(log, run_id, (lambda: _artifacts(settings)) if artifacts else None, tell)
    if run_id is not None and report.streams == 0 and not report.faults:
        raise NotSo(f"there is no run {run_id}")
    print_report(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


def _time(text: str) -> datetime:
    from pydantic import TypeAdapter, ValidationError

    from training_fsm.domain.timeframe import UtcTime

    try:
        return TypeAdapter[datetime](UtcTime).validate_json(f'"{text}"')
    except ValidationError as error:
        raise BadInput(f"--at: expected a time such as 2026-11-24T12:00:00Z, got {text!r}") from error


def _artifacts(settings: "Settings") -> "Artifacts":
    try:
        from training_fsm.client.artifact_store import MlflowArtifacts
        from training_fsm.client.mlflow_connection import MlflowConnection
    except ImportError as error:
        raise NotSo(f"{error}; stored files need `pip install training-fsm[worker]`, or --no-artifacts") from error
    return MlflowArtifacts(MlflowConnection(settings.mlflow_tracking_uri))
