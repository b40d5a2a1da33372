"""What the stand-in of preprocess answers is of the contract that we export."""

import json
from pathlib import Path

import jsonschema_rs
import pytest
from pydantic import JsonValue

from training_fsm.contracts.files import contract_files
from training_fsm.local.standin.answers import answer
from training_fsm.local.standin.feast_repository import FeastRepository
from training_fsm.local.standin.wire import PreprocessingRequest

pytestmark = [
    # Feast's own warnings are not ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def _request(feature: str = "rsi") -> PreprocessingRequest:
    definition: JsonValue = {"name": feature, "enabled": True, "derivatives": []}
    version: JsonValue = {"semver": "1.0.0", "hash": "0", "created_at": "2026-01-01T00:00:00Z"}
    assert isinstance(version, dict)
    return PreprocessingRequest.model_validate(
        {
            "symbol": "EURUSD",
            "base_timeframe": "1h",
            "target_timeframes": ["4h"],
            "feature_config_version_info": version | {"feature_definitions": [definition]},
            "start_time": "2017-02-01T00:00:00Z",
            "end_time": "2017-02-03T00:00:00Z",
            "request_id": "a request",
        }
    )


def test_each_kind_of_answer_is_of_the_contract(tmp_path: Path) -> None:
    """A completion, a feature that nobody knows, and a failure, in this order; each under its header's name."""
    repository = FeastRepository(tmp_path)
    answers = [answer(_request(), repository), answer(_request("wizardry"), repository)]
    blocked = tmp_path / "EURUSD" / "year=2017" / "month=03"
    blocked.write_text("a file where a folder should be")
    later = {"start_time": _request().start_time.replace(month=3), "end_time": _request().end_time.replace(month=3)}
    answers.append(answer(_request().model_copy(update=later), repository))
    kinds = [answer.headers["event_type"] for answer in answers]
    assert kinds == ["preprocessing_completed", "feature_validation_error", "preprocessing_error"]
    for kind, given in zip(kinds, answers, strict=True):
        schema = json.loads(contract_files()[f"preprocess/{kind}.json"])
        jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(json.loads(given.value))
