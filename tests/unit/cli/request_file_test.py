import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from training_fsm.cli.app import app
from training_fsm.cli.errors import BadInput
from training_fsm.cli.request_file import BYTES_MAX, read_request
from training_fsm.domain.features import definitions_hash
from training_fsm.domain.request import TrainingRequest
from training_fsm.local.stack import EXAMPLES

Fields = dict[str, object]

YAML = """
type: request_training
mode: from_scratch
model: eurusd-ppo
symbol: NO                       # a symbol, no boolean
base_timeframe: 1h
timeframe: 4h
range: {start: 2017-01-01T00:00:00Z, end: 2018-01-01T00:00:00Z}
features:
  semver: 1.0.0
  feature_definitions:
    - {name: rsi, enabled: true, derivatives: [], raw_parameter_sets: [{type: rsi, enabled: true, length: 014}]}
data: {columns: {close: close_price_value}, max_gap_bars: null}
agent: {seed: 7, total_timesteps: 20000, n_envs: 4, hyperparameters: {n_steps: 256, learning_rate: 3e-4}}
env: {max_time_in_trade: 12}
"""


def _validate(text: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["run", "validate", "-", *options], input=text)


def test_yaml_and_json_mean_the_same(tmp_path: Path, request_fields: Fields) -> None:
    """Either way of writing gives the same request."""
    (tmp_path / "r.json").write_text(json.dumps(request_fields, indent="\t"))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(request_fields))
    from_json, from_yaml = read_request(str(tmp_path / "r.json")), read_request(str(tmp_path / "r.yaml"))
    assert from_json == from_yaml


def test_yaml_is_read_as_of_version_1_2(tmp_path: Path) -> None:
    """`NO` is text, `3e-4` a number, `014` decimal, a time is a time."""
    file = tmp_path / "r.yaml"
    file.write_text(YAML)
    request = read_request(str(file)).request
    assert request.symbol == "NO"
    assert request.agent.hyperparameters.learning_rate == 3e-4
    assert request.features.feature_definitions[0].raw_parameter_sets[0]["length"] == 14
    assert request.range.start.year == 2017


def test_validate_shows_what_would_be_sent() -> None:
    """What is printed can be submitted, and what follows from it stands below."""
    result = _validate(YAML)
    assert result.exit_code == 0, result.output
    assert "# environment steps in whole rollouts: 20,480" in result.stdout
    assert "# embargo between the parts: 12 bars" in result.stdout
    again = _validate(result.stdout)
    assert again.stdout == result.stdout


def test_validate_as_json() -> None:
    """The same as a document with the numbers in fields of their own."""
    found = json.loads(_validate(YAML, "--json").stdout)
    assert (found["whole_timesteps"], found["embargo_bars"], found["run_id"]) == (20_480, 12, None)
    assert found["request"]["agent"]["hyperparameters"]["gamma"] == 0.99
    request = TrainingRequest.model_validate(found["request"])
    assert found["feature_config_hash"] == definitions_hash(request.features.feature_definitions)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2\n", "stdin: line 2 column 1: a: the key stands twice"),
        ('{"a": 1, "a": 2}', "stdin: a: the key stands twice"),
        ("agent: {seed: 1, seed: 2}", "stdin: line 1 column 18: seed: the key stands twice"),
        ("a: &x [1]\nb: *x\n", "stdin: line 2 column 4: aliases are not read; write the value out"),
        ("? [1]\n: 2\n", "stdin: line 1 column 3: expected a text as key"),
        ("a: [1\nb: 2", "stdin: line 2 column 2: expected ',' or ']', but got ':'"),
        ("- 1\n", "stdin: expected an object with the fields of a request"),
        ("", "stdin: expected an object with the fields of a request"),
        ("a: .nan\n", "stdin: Out of range float values are not JSON compliant"),
        ('{"a": 1e400}', "stdin: value: expected numbers"),
        ("a: 1e400", "stdin: Out of range float values are not JSON compliant"),
        ('{"a": NaN}', "stdin: value: expected finite numbers, got NaN"),
        ('{"a": "\\u0000"}', "stdin: a: expected text without NUL characters"),
        ('a: "\\0"', "stdin: a: expected text without NUL characters"),
        ('{"a": "\\ud800"}', "stdin: a: expected Unicode text, a lone surrogate is none"),
        ("a: !!python/object/apply:os.getcwd []", "stdin: line 1 column 4: could not determine a constructor for"),
        ("a: !!binary aGk=", "stdin: Object of type bytes is not JSON serializable"),
        ("[" * 5_000, "stdin: "),
    ],
)
def test_what_is_no_request_is_refused(text: str, line: str) -> None:
    """Bad text is one line on stderr and exit code 2."""
    result = _validate(text)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (only,) = result.stderr.splitlines()
    assert only.startswith(line)


def test_faults_of_envelope_and_fields_come_together(request_fields: Fields) -> None:
    """A wrong type, a wrong run id and a wrong field are three lines."""
    fields = request_fields | {"type": "cancel_run", "run_id": "a/b", "symbol": 5}
    lines = _validate(json.dumps(fields)).stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["type", "run_id", "symbol"]


def test_numbers_in_quotes_are_no_numbers(request_fields: Fields) -> None:
    """A file is read as strictly as a message on Kafka."""
    result = _validate(yaml.safe_dump(request_fields | {"agent": {"seed": "7"}}))
    assert result.stderr == "agent.seed: expected a valid integer, got '7'\n"


def test_a_file_may_not_be_larger_than_a_command(tmp_path: Path) -> None:
    """What Kafka's side would refuse is refused here."""
    file = tmp_path / "r.yaml"
    file.write_text(" " * (BYTES_MAX + 1))
    with pytest.raises(BadInput, match="at most"):
        read_request(str(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The name and the system's word for it."""
    result = CliRunner().invoke(app, ["run", "validate", str(tmp_path / "none.yaml")])
    assert (result.exit_code, result.stderr) == (2, f"{tmp_path / 'none.yaml'}: No such file or directory\n")


def test_latin1_is_refused(tmp_path: Path) -> None:
    """Text must be UTF-8."""
    file = tmp_path / "r.yaml"
    file.write_bytes("model: é".encode("latin-1"))
    with pytest.raises(BadInput, match="byte 7"):
        read_request(str(file))


CONTINUE = """
mode: continue
parent: models:/eurusd-ppo/3
agent: {total_timesteps: 20000}
"""


def test_a_continued_request_shows_only_what_is_given() -> None:
    """No default is filled in: what is absent is the parent's, and that is said; the output can be submitted."""
    result = _validate(CONTINUE)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout) == {
        "type": "request_training",
        "mode": "continue",
        "parent": "models:/eurusd-ppo/3",
        "agent": {"total_timesteps": 20_000},
    }
    assert "# what is absent is the parent's; the model's name: eurusd-ppo" in result.stdout
    assert "on top of the parent's: 20,000, rounded up" in result.stdout
    assert _validate(result.stdout).stdout == result.stdout
    found = json.loads(_validate(CONTINUE, "--json").stdout)
    assert found["request"] == {
        "mode": "continue", "parent": "models:/eurusd-ppo/3", "agent": {"total_timesteps": 20_000}
    }  # fmt: skip
    assert (found["whole_timesteps"], found["embargo_bars"], found["feature_config_hash"]) == (None, None, None)


def test_what_the_parent_must_have_too_is_named() -> None:
    """Fields that shapes depend on are not refused before the parent is known, but said."""
    result = _validate(f"{CONTINUE}accept_drift: true\nenv: {{window: 4, fee: 0.001}}\n")
    assert "# must be as the parent's, which is looked at before training: env.window\n" in result.stdout
    assert "# trains also if the feature store now gives other values" in result.stdout


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("parent: models:/eurusd-ppo/3", "mode: expected continue, since a parent is named, got None"),
        ("mode: from_scratch\nparent: run-1", "mode: expected continue, since a parent is named, got from_scratch"),
        ("mode: continue", "parent: missing"),
        ("mode: continue\nparent: models:/eurusd-ppo", "parent: expected models:/NAME/VERSION"),
        (f"{CONTINUE}env: {{windw: 3}}", "env.windw: unknown; did you mean window?"),
        (f"{CONTINUE}env: {{fee: -1}}", "env.fee: expected"),
    ],
)
def test_a_continued_request_is_checked_as_strictly(text: str, line: str) -> None:
    """One line with the path, as from scratch."""
    result = _validate(text)
    assert result.exit_code == 2, result.output
    (only,) = result.stderr.splitlines()
    assert only.startswith(line)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_validates(example: Path) -> None:
    """What is shipped can be sent as it is."""
    result = CliRunner().invoke(app, ["run", "validate", str(example)])
    assert result.exit_code == 0, result.output
