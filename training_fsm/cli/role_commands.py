"""The roles of a deployment, one process each: `orchestrator`, `worker`, `migrate`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from training_fsm.cli.context import Home, settings_of
from training_fsm.cli.extras import require_extra

if TYPE_CHECKING:
    from training_fsm.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to the top level."""
    app.command()(orchestrator)
    app.command()(worker)
    app.command()(migrate)


def orchestrator(ctx: typer.Context, home: Home = None) -> None:
    """Take commands and preprocess's answers from Kafka, ask ingest, and publish every event."""
    from training_fsm.orchestrator import run_orchestrator
    from training_fsm.signals import stop_on_signals

    settings = settings_of(ctx, home)
    _serve("orchestrator", settings, lambda: run_orchestrator(settings, stop_on_signals()))


def worker(
    ctx: typer.Context,
    home: Home = None,
    once: Annotated[bool, typer.Option("--once", help="Do one run and exit.")] = False,
    run: Annotated[str | None, typer.Option("--run", help="With --once: this run and no other.")] = None,
) -> None:
    """Claim runs and train, evaluate and register them."""
    require_extra("worker")
    from training_fsm.signals import stop_on_signals
    from training_fsm.worker.supervisor import run_worker

    if run is not None and not once:
        raise typer.BadParameter("goes with --once", param_hint="--run")
    settings = settings_of(ctx, home)
    _serve("worker", settings, lambda: run_worker(settings, stop_on_signals(), once=once, run_id=run))


def migrate(ctx: typer.Context, home: Home = None) -> None:
    """Bring the database to this version's schema."""
    from training_fsm.store.engine import make_engine
    from training_fsm.store.migrate import migrate as bring

    engine = make_engine(settings_of(ctx, home).database_url, application_name="training-fsm-migrate")
    bring(engine)
    engine.dispose()
    typer.echo("database is at this version's schema")


def _serve(role: str, settings: "Settings", serve: Callable[[], int]) -> None:
    """Run a role to its end; with JSON logs, what ends it is a line of them as well."""
    import structlog

    from training_fsm.domain.errors import TrainingFsmError
    from training_fsm.logs import configure_logs

    configure_logs(settings, role)
    try:
        code = serve()
    except Exception as error:
        if settings.log_format != "json":
            raise
        expected = isinstance(error, TrainingFsmError)
        structlog.get_logger(__name__).critical("role ends", error=str(error), exc_info=not expected)
        raise typer.Exit(1) from error
    raise typer.Exit(code)
