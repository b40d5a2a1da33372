"""services.json: where the services of a running `up` are, for every other command and for people."""

import os
from pathlib import Path

from training_fsm.domain.model import Model
from training_fsm.settings import SERVICES_FILE


class Services(Model):
    """Settings of the processes that `up` runs, under the settings' own names, and their process numbers."""

    database_url: str
    """With the password of a database that listens on loopback only."""
    bootstrap_servers: str
    kafka_options: dict[str, str]
    topic_prefix: str
    ingest_url: str
    ingest_path: str
    feast_repo: Path
    mlflow_tracking_uri: str
    lease_s: float
    processes: dict[str, int]
    """By service; `up` is the one that watches the others."""

    def environment(self) -> dict[str, str]:
        """The settings as variables of the environment, where they win over everything but arguments."""
        values = self.model_dump(mode="json", exclude={"processes", "kafka_options"})
        names = {f"TRAINING_FSM_{name.upper()}": str(value) for name, value in values.items()}
        return names | {"TRAINING_FSM_KAFKA_OPTIONS": "{}"}


def write_services(home: Path, services: Services) -> None:
    """Replace the file by rename; nobody but its owner may read it."""
    fresh = home / f".{SERVICES_FILE}.new"
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(services.model_dump_json(indent=2) + "\n")
    fresh.replace(home / SERVICES_FILE)


def remove_services(home: Path) -> None:
    """Say that nothing runs here; harmless when repeated."""
    (home / SERVICES_FILE).unlink(missing_ok=True)
