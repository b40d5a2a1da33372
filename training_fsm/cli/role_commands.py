"""The roles of a deployment, one process each: `orchestrator`, `worker`, `migrate`."""

from typing import Annotated

import typer

from training_fsm.cli.context import Home, settings_of
from training_fsm.cli.extras import require_extra


def register(app: typer.Typer) -> None:
    """Add the commands to the top level."""
    app.command()(orchestrator)
    app.command()(worker)
    app.command()(migrate)


def orchestrator(ctx: typer.Context, home: Home = None) -> None:
    """Take commands and preprocess's answers from Kafka, ask ingest, and publish every event."""
    from training_fsm.logs import configure_logs
    from training_fsm.orchestrator import run_orchestrator
    from training_fsm.signals import stop_on_signals

    settings = settings_of(ctx, home)
    configure_logs(settings, "orchestrator")
    raise typer.Exit(run_orchestrator(settings, stop_on_signals()))


def worker(
    ctx: typer.Context,
    home: Home = None,
    once: Annotated[bool, typer.Option("--once", help="Do one run and exit.")] = False,
    run: Annotated[str | None, typer.Option("--run", help="With --once: this run and no other.")] = None,
) -> None:
    """Claim runs and train, evaluate and register them."""
    require_extra("worker")
    from training_fsm.logs import configure_logs
    from training_fsm.signals import stop_on_signals
    from training_fsm.worker.supervisor import run_worker

    if run is not None and not once:
        raise typer.BadParameter("goes with --once", param_hint="--run")
    settings = settings_of(ctx, home)
    configure_logs(settings, "worker")
    raise typer.Exit(run_worker(settings, stop_on_signals(), once=once, run_id=run))


def migrate(ctx: typer.Context, home: Home = None) -> None:
    """Bring the database to this version's schema."""
    from training_fsm.store.engine import make_engine
    from training_fsm.store.migrate import migrate as bring

    engine = make_engine(settings_of(ctx, home).database_url, application_name="training-fsm-migrate")
    bring(engine)
    engine.dispose()
    typer.echo("database is at this version's schema")
