import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training_fsm.client.model_folder import RECORD_FILE, read_record, the_zip
from training_fsm.domain import events as e
from training_fsm.domain.errors import ParentMissing, ParentUnfit
from training_fsm.domain.evolve import evolve
from training_fsm.domain.states import State
from training_fsm.service.model_lifecycle_service import record_of


@pytest.fixture
def folder(life: Callable[[str], tuple[e.Event, ...]], tmp_path: Path) -> Path:
    """A model's folder with the record of a whole life."""
    run = None
    for event in life("run-1"):
        run = evolve(run, "run-1", event, State.EVALUATING)
    assert run is not None
    (tmp_path / RECORD_FILE).parent.mkdir(parents=True)
    (tmp_path / RECORD_FILE).write_text(record_of(run).model_dump_json(indent=1))
    return tmp_path


def _altered(folder: Path, change: Callable[[dict[str, object]], None]) -> str:
    """What is said about a record that was changed so."""
    fields = json.loads((folder / RECORD_FILE).read_text())
    change(fields)
    (folder / RECORD_FILE).write_text(json.dumps(fields))
    with pytest.raises(ParentUnfit) as caught:
        read_record(folder)
    assert caught.value.failure.kind == "parent_unfit"
    return caught.value.failure.words


def test_a_record_is_read_and_a_folder_without_one_has_none(folder: Path, tmp_path: Path) -> None:
    """Of a folder of ours the record, of a foreign one and of a single file nothing."""
    record = read_record(folder)
    assert record is not None
    assert (record.run_id, record.request.model, record.depth) == ("run-1", "eurusd-ppo", 0)
    assert read_record(folder / "artifacts") is None
    assert read_record(folder / RECORD_FILE) is None


def test_another_algorithm_is_said_in_so_many_words(folder: Path) -> None:
    """Also where nothing else in the record is understood."""

    def other(fields: dict[str, object]) -> None:
        request = fields["request"]
        assert isinstance(request, dict)
        request["agent"] = {"name": "DQN", "buffer_size": 1_000_000}

    assert _altered(folder, other) == "another algorithm: the parent's agent is DQN, expected PPO"


def test_a_record_of_another_format_is_refused_with_its_fields(folder: Path) -> None:
    """A later version's record is not half understood."""
    words = _altered(folder, lambda fields: fields.update(format=2, news="x"))
    assert words.startswith("the parent's training.json is not one that this version reads: ")
    assert "format: " in words
    assert "news: " in words


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"request": {"agent": "PPO"}}'])
def test_what_is_no_record_is_refused(folder: Path, text: bytes) -> None:
    """Torn, empty, or another file of that name."""
    (folder / RECORD_FILE).write_bytes(text)
    with pytest.raises(ParentUnfit, match=r"training\.json is not one that this version reads: .+") as caught:
        read_record(folder)
    assert caught.value.failure.field == "parent"


def test_the_zip_is_the_only_one(tmp_path: Path) -> None:
    """Found at any depth, or given itself; none is none, and of two nobody knows which."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("x")
    assert the_zip(tmp_path) is None
    assert the_zip(tmp_path / "notes.txt") is None
    one = tmp_path / "deep" / "er" / "ppo.zip"
    one.write_bytes(b"PK")
    assert the_zip(tmp_path) == the_zip(one) == one
    (tmp_path / "best.zip").write_bytes(b"PK")
    with pytest.raises(ParentMissing, match=r"^expected one zip to continue, found 2: best\.zip, deep/er/ppo\.zip$"):
        the_zip(tmp_path)


def test_a_look_into_a_folder_loads_nothing_heavy() -> None:
    """The supervisor calls this in its own process."""
    heavy = "{'torch', 'pandas', 'mlflow', 'numpy', 'stable_baselines3', 'feast'}"
    code = f"import sys, training_fsm.client.model_folder; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
