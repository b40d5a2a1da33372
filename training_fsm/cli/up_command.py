"""`training-fsm up`: everything on this machine, kept running."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training_fsm.cli.context import Home, settings_of
from training_fsm.cli.errors import NotSo, complain
from training_fsm.cli.extras import require_extra

if TYPE_CHECKING:
    from rich.console import Console

    from training_fsm.local.services_file import Services
    from training_fsm.local.stack import LocalStack, StackOptions

TEND_S = 0.2

KafkaHome = Annotated[
    Path | None,
    typer.Option("--kafka-home", help="Run the Apache Kafka unpacked there instead of the embedded broker."),
]
Workers = Annotated[int, typer.Option("--workers", min=0, max=64, help="So many workers.")]
LeaseS = Annotated[
    float | None, typer.Option("--lease-s", min=1, help="How long a run stays with a worker that is not heard of.")
]


def _port(name: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}-port", min=1, max=65535, help=f"Port of {what} on loopback; a free one where absent."
    )
    return option


PostgresPort = Annotated[int | None, _port("postgres", "PostgreSQL")]
KafkaPort = Annotated[int | None, _port("kafka", "the broker")]
MlflowPort = Annotated[int | None, _port("mlflow", "MLflow")]
IngestPort = Annotated[int | None, _port("ingest", "the stand-in for ingest")]


def register(app: typer.Typer) -> None:
    """Add the command to the top level."""
    app.command()(up)


def up(
    ctx: typer.Context,
    home: Home = None,
    kafka_home: KafkaHome = None,
    workers: Workers = 1,
    lease_s: LeaseS = None,
    postgres_port: PostgresPort = None,
    kafka_port: KafkaPort = None,
    mlflow_port: MlflowPort = None,
    ingest_port: IngestPort = None,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C; data stays in the home folder."""
    require_extra("local")
    from training_fsm.cli.output import make_console
    from training_fsm.local.stack import Ports, StackOptions

    folder = settings_of(ctx, home).home.absolute()
    options = StackOptions(
        home=folder,
        kafka_home=kafka_home,
        workers=workers,
        ports=Ports(postgres=postgres_port, kafka=kafka_port, mlflow=mlflow_port, ingest=ingest_port),
        lease_s=lease_s,
    )
    console = make_console()
    started = time.monotonic()
    with interruptible(), running(options, console) as stack:
        console.print(f"up in {time.monotonic() - started:.0f} s, Ctrl-C stops it")
        print_services(console, stack.services, options)
        _print_hints(console, stack.services, options)
        _warn_of_environment(stack.services)
        try:
            while True:
                time.sleep(TEND_S)
                stack.tend()
        except KeyboardInterrupt:
            console.print("stopping")
    console.print(f"stopped; data stays in {folder}")


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does; the second signal ends at once, and everything with us."""

    def interrupt(*_: object) -> None:
        for number in signals:
            signal.signal(number, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def running(options: "StackOptions", console: "Console") -> Iterator["LocalStack"]:
    """The stack in a block. Raises NotSo, with the end of a log, where a service does not run."""
    from training_fsm.local.process import StartFailed
    from training_fsm.local.stack import LocalStack

    stack = LocalStack(options, _saying(console))
    try:
        with console.status("starting PostgreSQL, a Kafka broker, MLflow, the stand-ins, orchestrator and workers"):
            stack.start()
        try:
            yield stack
        finally:
            stack.stop()
    except StartFailed as error:
        raise NotSo(*str(error).splitlines()) from error


def _saying(console: "Console") -> Callable[[str], None]:
    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True)

    return say


def print_services(console: "Console", services: "Services", options: "StackOptions") -> None:
    """Where everything is."""
    import sqlalchemy as sa
    from rich.table import Table

    home = options.home
    url = sa.make_url(services.database_url)
    kafka = "embedded broker, topics in memory" if options.kafka_home is None else "Apache Kafka"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, address, what in (
        (
            "PostgreSQL",
            f"{url.host}:{url.port}",
            f"database and user {url.database}, password in {home}/postgres.password",
        ),
        ("Kafka", services.bootstrap_servers, kafka),
        ("MLflow", services.mlflow_tracking_uri, "runs, checkpoints, models"),
        ("ingest", services.ingest_url + services.ingest_path, "stand-in, as preprocess is"),
        ("Feast", str(services.feast_repo), "feature repository"),
        ("logs", str(home / "logs"), ""),
        ("services", str(home / "services.json"), "by which other commands find all this"),
    ):
        table.add_row(name, address, what)
    console.print(table)


def _print_hints(console: "Console", services: "Services", options: "StackOptions") -> None:
    """What one may do next."""
    import shlex

    import sqlalchemy as sa

    from training_fsm.local.stack import EXAMPLES
    from training_fsm.settings import default_home

    home, url = options.home, sa.make_url(services.database_url)
    ours = "training-fsm" if home == default_home() else f"training-fsm --home {shlex.quote(str(home))}"
    topic = f"{services.topic_prefix}events.train-model"
    console.print("next:")
    for line in (
        f"{ours} run submit {shlex.quote(str(EXAMPLES / 'eurusd-4h.yaml'))} --wait",
        f"{ours} run list",
        f"kcat -C -b {services.bootstrap_servers} -t {topic} -f '%k %s\\n'",
        f"PGPASSWORD=$(cat {shlex.quote(str(home / 'postgres.password'))}) psql -h {url.host} -p {url.port} "
        f"-U {url.username} {url.database} -c 'TABLE runs'",
    ):
        console.print(f"  {line}", soft_wrap=True)


def _warn_of_environment(services: "Services") -> None:
    """Say which variables hide what services.json tells other commands."""
    if hiding := sorted(services.environment().keys() & os.environ.keys()):
        complain([f"{', '.join(hiding)}: set in this environment, and wins over services.json"])
