"""`training-fsm admin …`: what keeps an installation tidy, with a dry run; `relay` instead wants a `--yes`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from training_fsm.cli.context import AsJson, Home, opened_database, settings_of
from training_fsm.cli.errors import BadInput, NotSo
from training_fsm.cli.extras import require_extra

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from training_fsm.cli.admin_output import AliasCompared
    from training_fsm.messaging.relay import Relay
    from training_fsm.service.housekeeping_service import HousekeepingService
    from training_fsm.settings import Settings

app = typer.Typer(help="Keep stored files, aliases and the inbox tidy; publish the log again.", no_args_is_help=True)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and say what would be done.")]


@app.command()
def housekeeping(ctx: typer.Context, dry_run: DryRun = False, as_json: AsJson = False, home: Home = None) -> None:
    """Release and delete stored files that no run needs any more, and forget old commands."""
    from training_fsm.cli.admin_output import print_pass
    from training_fsm.service.housekeeping_service import AnotherPassError

    settings = settings_of(ctx, home)
    if not dry_run:
        require_extra("worker")
    with opened_database(settings) as engine:
        service = _housekeeping(settings, engine)
        if dry_run:
            done = service.plan()
        else:
            from training_fsm.client.artifact_store import MlflowArtifacts
            from training_fsm.client.mlflow_connection import MlflowConnection

            try:
                done = service.run(MlflowArtifacts(MlflowConnection(settings.mlflow_tracking_uri)))
            except AnotherPassError as error:
                raise NotSo(str(error)) from error
    print_pass(done, dry_run=dry_run, as_json=as_json)
    if not done.complete:
        raise typer.Exit(1)


@app.command()
def aliases(ctx: typer.Context, dry_run: DryRun = False, as_json: AsJson = False, home: Home = None) -> None:
    """Compare MLflow's aliases with the log, and point them where the log says."""
    from training_fsm.cli.admin_output import print_aliases

    settings = settings_of(ctx, home)
    require_extra("worker")
    with opened_database(settings) as engine:
        compared = _compare_aliases(settings, engine, mend=not dry_run)
    print_aliases(compared, dry_run=dry_run, as_json=as_json)
    if not dry_run and any(one.mlflow_version != one.version and not one.moved for one in compared):
        raise typer.Exit(1)


@app.command()
def relay(
    ctx: typer.Context,
    position: Annotated[int, typer.Option("--from", min=0, help="First position to publish again; 0 for all.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    home: Home = None,
) -> None:
    """Let the log be published once more from a position on; every orchestrator must be stopped."""
    from confluent_kafka import KafkaException

    from training_fsm.messaging.relay import RelayLeadsError

    settings = settings_of(ctx, home)
    if not yes:
        words = "every event from there on goes out again, with the ce_id that it had; --yes does it"
        raise BadInput(f"--from {position}: {words}")
    with opened_database(settings) as engine:
        try:
            _relay(settings, engine).rewind(position)
        except RelayLeadsError as error:
            raise NotSo(str(error)) from error
        except ValueError as error:
            raise BadInput(f"--from {position}: {error}") from error
        except KafkaException as error:
            raise NotSo(f"kafka: {error.args[0].str()}") from error
    print(f"the next orchestrator publishes from position {max(position, 1)} on")


def _housekeeping(settings: "Settings", engine: "Engine") -> "HousekeepingService":
    from datetime import timedelta

    from training_fsm.messaging.kafka import make_admin
    from training_fsm.messaging.topic_lifetime import TopicLifetime
    from training_fsm.messaging.topics import Topics
    from training_fsm.service.housekeeping_service import HousekeepingService
    from training_fsm.service.retention_service import Retention
    from training_fsm.store.event_log import PostgresEventLog
    from training_fsm.store.housekeeping import PostgresHousekeeping

    # What librdkafka says of a broker that is away is in the error as well.
    quiet = settings.model_copy(update={"kafka_options": {"log_level": "0", **settings.kafka_options}})
    return HousekeepingService(
        PostgresEventLog(engine),
        PostgresHousekeeping(engine),
        TopicLifetime(make_admin(quiet), Topics.with_prefix(settings.topic_prefix).requested),
        Retention(settings.retention_checkpoints, timedelta(days=settings.retention_data_days)),
        timedelta(days=settings.retention_inbox_days),
    )


def _compare_aliases(settings: "Settings", engine: "Engine", *, mend: bool) -> "Sequence[AliasCompared]":
    from training_fsm.cli.admin_output import AliasCompared
    from training_fsm.client.mlflow_connection import MlflowConnection
    from training_fsm.client.mlflow_models import MlflowModels
    from training_fsm.service.model_lifecycle_service import ModelLifecycleService
    from training_fsm.store.event_log import PostgresEventLog

    models = MlflowModels(MlflowConnection(settings.mlflow_tracking_uri))
    with PostgresEventLog(engine).aliases() as wanted:
        if not wanted:
            raise NotSo("a worker compares the aliases at this moment; try again")
        before = {
            (name, alias): models.alias_version(name, alias) for alias, versions in wanted.items() for name in versions
        }
        moved = ModelLifecycleService(models).reconcile_aliases(wanted) if mend else ()
    return [
        AliasCompared(
            model=name,
            alias=alias,
            version=wanted[alias][name],
            mlflow_version=version,
            moved=f"{name}@{alias}" in moved,
        )
        for (name, alias), version in sorted(before.items())
    ]


def _relay(settings: "Settings", engine: "Engine") -> "Relay":
    from training_fsm.messaging.kafka import make_admin, make_consumer, make_producer
    from training_fsm.messaging.relay import Relay
    from training_fsm.messaging.topics import Topics
    from training_fsm.store.outbox import PostgresOutbox

    group = f"{settings.topic_prefix}training-fsm-relay"
    return Relay(
        PostgresOutbox(engine),
        Topics.with_prefix(settings.topic_prefix),
        lambda: make_producer(settings, group),
        lambda: make_consumer(settings, group),
        make_admin(settings),
        lambda: None,
    )
