"""Schemas as whoever gets the files would use them."""

import json
from collections.abc import Callable
from functools import cache

import jsonschema_rs
import pytest

from training_fsm.contracts.files import contract_files

Validator = jsonschema_rs.Draft202012Validator


@cache
def _validator(name: str) -> Validator:
    schema = json.loads(contract_files()[f"{name}.json"])
    jsonschema_rs.meta.validate(schema)
    return Validator(schema, validate_formats=True)


@pytest.fixture(scope="session")
def contract() -> Callable[[str], Validator]:
    """From `events/run_failed` to the validator of that file."""
    return _validator
