import json

import pytest
from pydantic import ValidationError

from training_fsm.domain.commands import CancelRun
from training_fsm.domain.explain import LINES_MAX, explain
from training_fsm.domain.model import Model
from training_fsm.domain.request import TrainingRequest

Fields = dict[str, object]


def _lines(model: type[Model], fields: Fields) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(fields), strict=True)
    return explain(caught.value)


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"agent": {"seed": "7"}}, ["agent.seed: expected a valid integer, got '7'"]),
        ({"agent": {"seed": True}}, ["agent.seed: expected a valid integer, got true"]),
        ({"agent": {"sed": 7}}, ["agent.sed: unknown; did you mean seed?"]),
        (
            {"data": {"columns": {"xyz": 1, "close": "c"}}},
            ["data.columns.xyz: unknown; expected one of close, open, high, low, atr"],
        ),
        ({"data": {}}, ["data.columns: missing"]),
        ({"features": []}, ["features: expected an object, got a list of 0"]),
        ({"agent": {"net_arch": [64, "a"]}}, ["agent.net_arch[1]: expected a valid integer, got 'a'"]),
        ({"agent": {"net_arch": [0]}}, ["agent.net_arch: expected 1 to 8192 units per layer, got [0]"]),
        ({"agent": {"net_arch": 64}}, ["agent.net_arch: expected a list, got 64"]),
        ({"mode": None}, ["mode: expected 'from_scratch' or 'continue', got null"]),
        ({"base_timeframe": "4h"}, ["base_timeframe: expected one below timeframe 4h, got 4h"]),
        (
            {"agent": {"hyperparameters": {"batch_size": 4096}}},
            ["agent.hyperparameters.batch_size: expected at most n_steps x n_envs = 2048, got 4096"],
        ),
        (
            {"agent": {"hyperparameters": {"learning_rate": "x"}}},
            ["agent.hyperparameters.learning_rate: expected a valid number or an object, got 'x'"],
        ),
        (
            {"agent": {"hyperparameters": {"learning_rate": {"start": 1, "end": "x"}}}},
            ["agent.hyperparameters.learning_rate.end: expected a valid number, got 'x'"],
        ),
        (
            {"agent": {"hyperparameters": {"learning_rate": {"begin": 1, "end": 0}}}},
            [
                "agent.hyperparameters.learning_rate.start: missing",
                "agent.hyperparameters.learning_rate.begin: unknown; expected one of schedule, start, end, "
                "horizon_timesteps",
            ],
        ),
        ({"evaluation": {"gate": [{"metric": "sharpe"}]}}, ["evaluation.gate[0]: expected min, max or both"]),
        (
            {"features": {"semver": "1.0.0", "feature_definitions": []}},
            ["features.feature_definitions: expected at least 1 item, got a list of 0"],
        ),
    ],
)
def test_each_fault_is_one_line(request_fields: Fields, change: Fields, lines: list[str]) -> None:
    """Path, what was expected, what was given, without the words of pydantic's inside."""
    assert _lines(TrainingRequest, request_fields | change) == lines


def test_every_fault_is_told_at_once(request_fields: Fields) -> None:
    """Who corrects one line does not find the next one only then."""
    lines = _lines(TrainingRequest, request_fields | {"agent": {"seed": "7", "n_envs": 0}, "mode": "x"})
    assert [line.partition(":")[0] for line in lines] == ["mode", "agent.seed", "agent.n_envs"]


def test_many_faults_are_counted(request_fields: Fields) -> None:
    """The list has an end; what is left out is counted."""
    lines = _lines(TrainingRequest, request_fields | {f"k{number}": 1 for number in range(100)})
    assert len(lines) == LINES_MAX
    assert lines[-1] == f"… and {100 - LINES_MAX + 1} more"


def test_long_and_unprintable_values_are_tamed() -> None:
    """What somebody else sent cannot fill a log line or steer a terminal."""
    (line,) = _lines(CancelRun, {"run_id": "r", "why\x00\x1b[2J" + "x" * 10_000: 1})
    assert len(line) < 200
    assert line.isprintable()
    (line,) = _lines(CancelRun, {"run_id": "a/" * 5_000})
    assert len(line) < 250


def test_text_that_is_no_json_is_said_so() -> None:
    """A broken document is one line too."""
    with pytest.raises(ValidationError) as caught:
        CancelRun.model_validate_json("{", strict=True)
    (line,) = explain(caught.value)
    assert line.startswith("Invalid JSON")
