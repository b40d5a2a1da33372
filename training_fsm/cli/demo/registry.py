"""What MLflow's registry says, asked over HTTP: importing its client would take longer than the answer."""

import httpx
from pydantic import BaseModel

from training_fsm.client.mlflow_tags import RUN_TAG

TIMEOUT_S = 15.0


class _Tag(BaseModel):
    key: str
    value: str


class _Version(BaseModel):
    version: int
    tags: tuple[_Tag, ...] = ()


class _Found(BaseModel):
    model_versions: tuple[_Version, ...] = ()


def runs_of_versions(tracking_uri: str, name: str) -> dict[int, str]:
    """Every version of a model name, with the id of the run that its tag names.

    Raises httpx.HTTPError where MLflow does not answer.
    """
    url = f"{tracking_uri}/api/2.0/mlflow/model-versions/search"
    answer = httpx.get(url, params={"filter": f"name = '{name}'"}, timeout=TIMEOUT_S).raise_for_status()
    found = _Found.model_validate_json(answer.content)
    return {
        version.version: next((tag.value for tag in version.tags if tag.key == RUN_TAG), "")
        for version in found.model_versions
    }
