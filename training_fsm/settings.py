"""Every setting, from the environment (`TRAINING_FSM_…`), a `.env` file, or the `services.json` of a running `up`."""

import socket
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from training_fsm.domain.policy import Policy

SERVICES_FILE = "services.json"


def default_home() -> Path:
    """Where data of a local installation lies unless told otherwise."""
    return Path(platformdirs.user_data_dir("training_fsm", appauthor=False))


class Settings(BaseSettings):
    """Where the services are and how this process behaves. Names in the environment carry `TRAINING_FSM_`."""

    model_config = SettingsConfigDict(
        env_prefix="TRAINING_FSM_",
        env_file=".env",
        extra="ignore",  # services.json also tells people addresses that are no settings
        frozen=True,
        use_attribute_docstrings=True,
    )

    home: Path = Field(default_factory=default_home)
    """Folder of the local installation: its data, spools and services.json."""

    database_url: str = "postgresql+psycopg://training_fsm@localhost:5432/training_fsm"
    """SQLAlchemy URL of PostgreSQL 15 or newer, driver psycopg."""

    bootstrap_servers: str = "localhost:9092"
    """Kafka brokers."""
    kafka_options: dict[str, str] = Field(default_factory=dict)
    """Any librdkafka option as JSON, `{"security.protocol": "SASL_SSL", …}`, for every client; only what delivery
    depends on (group, transactions, acknowledgements, offsets) is ours."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Stands before the names of our own topics, groups and transactional ids: two installations on one cluster."""
    topic_partitions: int = Field(default=6, gt=0)
    """Partitions of topics that we create."""
    topic_replication: int = Field(default=1, gt=0)
    """Replication factor of topics that we create."""

    ingest_url: str = "http://localhost:8080/api/v1"
    """Base URL of the ingest service."""
    ingest_path: str = "/preprocessing/requests"
    """Path of ingest's request endpoint; its published specification says /preprocessing-requests."""
    ingest_timeout_s: float = Field(default=30, gt=0)
    """How long one question to ingest may take."""

    feast_repo: Path | None = None
    """Folder with Feast's feature_store.yaml."""
    feast_registry: str | None = None
    """Instead of feast_repo: a registry's path or SQLAlchemy URL."""
    feast_project: str = "drl_trading_preprocess"
    """With feast_registry; a folder's feature_store.yaml names its own."""

    mlflow_tracking_uri: str = "http://localhost:5050"
    """MLflow's tracking server, registry and artifact store."""

    features_deadline_s: float = Field(default=3600, gt=0)
    """From asking ingest to preprocess's message; then the run fails."""
    refill: Literal["never", "backfill"] = "never"
    """Whether ingest is asked once more, for a backfill, where preprocess said that all is there and it is not. A
    backfill by preprocess destroys the columns of other feature configurations."""
    attempts_max: int = Field(default=8, gt=0)
    """Failures in a row, without progress, before a run fails."""
    backoff_first_s: float = Field(default=2, gt=0)
    """Before the second attempt; doubles with every failure in a row. With the defaults an outage of about two
    minutes is outlasted."""
    backoff_max_s: float = Field(default=60, gt=0)
    """Longest pause between two attempts."""

    worker_name: str = Field(default_factory=socket.gethostname)
    """The process id is added to it."""
    lease_s: float = Field(default=30, gt=0)
    """How long a run stays with a worker that is not heard of."""
    heartbeat_s: float = Field(default=2, gt=0)
    """Between two heartbeats; a third of the lease at most."""
    outage_patience_s: float = Field(default=600, gt=0)
    """How long a worker goes on trying to store a checkpoint or an event while MLflow or Postgres is away."""
    reconcile_every_s: float = Field(default=30, gt=0)
    """How often a worker without work compares aliases and tracking runs in MLflow with the log."""
    child_silence_s: float = Field(default=900, gt=0)
    """A training child that says nothing for so long is hung, and killed; an update says nothing until it is done."""

    trusted_model_digests: frozenset[str] = frozenset()
    """sha256 of Stable-Baselines3 zips that may be continued whole, as a JSON list. To read such a file whole is to run
    what is pickled in it; of all others only the weights are read."""

    retention_checkpoints: int = Field(default=3, gt=0)
    """Newest checkpoints of each run that housekeeping keeps; three at least while the run may still go on."""
    retention_data_days: float = Field(default=30, ge=0)
    """Frozen data of a run that ended FAILED, REJECTED or CANCELLED is kept for so long. Until then a failed run can be
    retried and a rejected one extended or overridden."""
    retention_inbox_days: float = Field(default=30, gt=0)
    """What became of a command is known for so long, and never shorter than the command lies in its topic."""
    housekeeping_every_h: float | None = Field(default=None, gt=0)
    """The orchestrator starts `training-fsm admin housekeeping` at its start and then this often; not set: never. It
    reaches MLflow, and needs training-fsm[worker] on the orchestrator's machine."""

    http_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of /healthz, /readyz and /metrics; 0 takes a free one and logs it. Not set: none of them."""
    http_host: str = "127.0.0.1"
    """Address that this port is opened on; 0.0.0.0 in a container."""
    health_silence_s: float = Field(default=120, gt=0)
    """A role whose loops have not turned for so long is not live. A worker's may stand still for
    `outage_patience_s` longer, since it waits for its stores."""

    log_format: Literal["console", "json"] = "console"
    """Lines for people, or one JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is less than that is not logged."""

    @property
    def policy(self) -> Policy:
        """Deadlines and retries."""
        return Policy(
            features_deadline_s=self.features_deadline_s,
            refill=self.refill,
            attempts_max=self.attempts_max,
            backoff_first_s=self.backoff_first_s,
            backoff_max_s=self.backoff_max_s,
        )

    @property
    def services_file(self) -> Path:
        """Written by `up`, read by every other command."""
        return self.home / SERVICES_FILE

    @property
    def spool(self) -> Path:
        """Where a worker keeps files until they are stored."""
        return self.home / "spool"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then .env, then the services.json of the home folder."""
        assert isinstance(init_settings, InitSettingsSource)
        assert isinstance(env_settings, EnvSettingsSource)
        assert isinstance(dotenv_settings, DotEnvSettingsSource)
        named = init_settings().get("home") or env_settings().get("home") or dotenv_settings().get("home")
        home = Path(str(named)) if named else default_home()
        services = JsonConfigSettingsSource(settings_cls, json_file=home / SERVICES_FILE)
        return (init_settings, env_settings, dotenv_settings, services)


def load_settings(home: Path | None = None) -> Settings:
    """The settings of this process; `home` wins over the environment."""
    return Settings() if home is None else Settings(home=home)
