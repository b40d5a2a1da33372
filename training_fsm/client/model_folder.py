"""What lies in the folder of a model that may be continued; light, so that a worker's supervisor can look into it."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from training_fsm.domain.algorithm import require_known
from training_fsm.domain.errors import ParentMissing, ParentUnfit
from training_fsm.domain.explain import explain
from training_fsm.domain.facts import Failure
from training_fsm.domain.lineage import TrainingRecord

RECORD_FILE = "artifacts/training.json"
"""Where a registered model keeps its TrainingRecord."""


class _Agent(BaseModel):
    name: str


class _Request(BaseModel):
    agent: _Agent


class _Head(BaseModel):
    """As much of a record as must be understood to say which algorithm it is of."""

    request: _Request


def read_record(folder: Path) -> TrainingRecord | None:
    """The record of a model of ours; None where the folder has none, or is a file.

    Raises ParentUnfit where it is of another algorithm, or cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    text = path.read_bytes()
    try:
        head = _Head.model_validate_json(text)
        require_known(head.request.agent.name)
        return TrainingRecord.model_validate_json(text)
    except ValidationError as error:
        words = f"the parent's training.json is not one that this version reads: {'; '.join(explain(error))}"
        raise ParentUnfit(Failure(kind="parent_unfit", words=words, field="parent")) from error


def the_zip(folder_or_file: Path) -> Path | None:
    """The one zip there is: what somebody logged by hand as a parent. Raises ParentMissing where there are several."""
    if folder_or_file.is_file():
        return folder_or_file if folder_or_file.suffix == ".zip" else None
    found = sorted(folder_or_file.rglob("*.zip"))
    if len(found) > 1:
        names = ", ".join(path.relative_to(folder_or_file).as_posix() for path in found[:10])
        words = f"expected one zip to continue, found {len(found)}: {names}"
        raise ParentMissing(Failure(kind="parent_missing", words=words, service="mlflow", field="parent"))
    return found[0] if found else None
