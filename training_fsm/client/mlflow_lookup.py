"""Which model version of MLflow's registry, or which file of a tracking run, a user means."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.client.mlflow_files import RUNS, listed, parent_missing, require_file
from training_fsm.client.mlflow_tags import AGENT_TAG, DIGEST_TAG, RUN_TAG, equals, quoted
from training_fsm.domain.facts import ModelRef
from training_fsm.ports import FoundModel

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_MODELS = "models:/"
_UNSEEN = "'#?%"
"""In a file's name MLflow takes them for parts of a URI, and finds another file or none."""
_NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""MLflow's codes for what it does not have; a missing alias and an impossible name are of the second kind."""


def look_up(connection: MlflowConnection, parent: str) -> FoundModel:
    """As Models.look_up."""
    for character in _UNSEEN if parent.startswith(RUNS) else "'":
        if character in parent:
            raise parent_missing(f"{parent}: expected a name without {character}, MLflow cannot look for one")
    with connection.calls(f"look for {parent}") as client:
        if parent.startswith(RUNS):
            require_file(connection, parent)
            return FoundModel(model=None, location=parent, digest=None, agent=None)
        version = _version(client, parent)
        # By number from here on: an alias may move meanwhile.
        location = client.get_model_version_download_uri(version.name, str(version.version))
        return FoundModel(
            model=ModelRef(name=version.name, version=int(version.version)),
            location=location,
            digest=version.tags.get(DIGEST_TAG),
            agent=version.tags.get(AGENT_TAG),
        )


def _version(client: "MlflowClient", parent: str) -> "ModelVersion":
    if not parent.startswith(_MODELS):
        return _newest_of_run(client, parent)
    name, at, alias = parent.removeprefix(_MODELS).partition("@")
    if at:
        return _by_alias(client, name, alias)
    name, _, number = name.rpartition("/")
    return _by_number(client, name, number)


def _by_alias(client: "MlflowClient", name: str, alias: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
        there = listed(_registered_model(client, name).aliases)
        raise parent_missing(f"model {name} has no alias {alias}; it has {there}") from error


def _by_number(client: "MlflowClient", name: str, number: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
        _registered_model(client, name)
        there = _ranges(int(version.version) for version in client.search_model_versions(f"name = {quoted(name)}"))
        raise parent_missing(f"model {name} has no version {number}; it has {there}") from error


def _newest_of_run(client: "MlflowClient", run_id: str) -> "ModelVersion":
    for wanted in (equals(RUN_TAG, run_id), f"run_id = {quoted(run_id)}"):
        found = client.search_model_versions(wanted)
        if found:
            return max(found, key=lambda version: (version.creation_timestamp, int(version.version)))
    words = f"no model version in MLflow comes from run {run_id}: neither by its tag {RUN_TAG} nor by its run_id"
    raise parent_missing(words)


def _registered_model(client: "MlflowClient", name: str) -> "RegisteredModel":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
        there = listed(model.name for model in client.search_registered_models())
        raise parent_missing(f"MLflow has no model {name}; it has {there}") from error


def _ranges(numbers: Iterable[int]) -> str:
    """`1 to 3, 5`; the newest ones where they are many."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    words = [str(first) if first == last else f"{first} to {last}" for first, last in spans[-10:]]
    return ", ".join(words) or "none"
