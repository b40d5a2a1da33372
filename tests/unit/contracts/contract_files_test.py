"""The folder of contracts: current, complete, valid by the standards that it names, and kept by a command."""

import gzip
import json
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from typer.testing import CliRunner

from training_fsm.cli.app import app
from training_fsm.contracts.files import contract_files, differences
from training_fsm.domain.commands import COMMAND_TYPES
from training_fsm.domain.events import EVENT_TYPES
from training_fsm.messaging.preprocessing_listener import PREPROCESS_TOPICS
from training_fsm.messaging.topics import Topics

DOCS = Path(__file__).parents[3] / "docs" / "contracts"
FILES = contract_files()
ASYNCAPI = yaml.safe_load(FILES["asyncapi.yaml"])
OFFICIAL = json.loads(gzip.decompress((Path(__file__).parent / "asyncapi-3.0.0.json.gz").read_bytes()))


def test_docs_are_current() -> None:
    """docs/contracts is what the models say; `training-fsm contracts export docs/contracts` brings it up to date."""
    assert differences(DOCS, FILES) == []


def test_each_command_and_event_has_a_schema_and_a_line() -> None:
    """What is added to the domain is in the folder by itself."""
    wanted = {f"commands/{name}.json" for name in COMMAND_TYPES} | {f"events/{name}.json" for name in EVENT_TYPES}
    assert wanted <= FILES.keys()
    assert [name for name in FILES if name.endswith(".json") and f"({name})" not in FILES["index.md"]] == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_each_schema_is_a_valid_one(name: str) -> None:
    """Of the draft that it names, and with every reference within itself."""
    schema = json.loads(FILES[name])
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.Draft202012Validator(schema)


def test_ids_are_all_different() -> None:
    """A registry of schemas tells them apart by their ids."""
    ids = [json.loads(text)["$id"] for name, text in FILES.items() if name.endswith(".json")]
    assert len(set(ids)) == len(ids)


def test_asyncapi_document_is_a_valid_one() -> None:
    """The AsyncAPI Initiative's own schema for 3.0.0 has nothing against it, and has where it is altered."""
    official = jsonschema_rs.Draft7Validator(OFFICIAL)
    assert [f"{list(error.instance_path)}: {error.message}" for error in official.iter_errors(ASYNCAPI)] == []
    for altered in (
        ASYNCAPI | {"asyncapi": "2.6.0"},
        ASYNCAPI | {"channels": {"t": {"addres": "t"}}},
        ASYNCAPI | {"operations": {"o": {"action": "publish", "channel": {"$ref": "#/channels/t"}}}},
    ):
        assert not official.is_valid(altered)


def test_asyncapi_references_lead_somewhere() -> None:
    """Every `$ref` in the document is a place in it."""

    def references(value: object) -> list[str]:
        match value:
            case {"$ref": str(reference)}:
                return [reference]
            case dict():
                return [reference for part in value.values() for reference in references(part)]
            case list():
                return [reference for part in value for reference in references(part)]
            case _:
                return []

    found = references(ASYNCAPI)
    assert len(found) > 100
    for reference in found:
        place: object = ASYNCAPI
        for step in reference.removeprefix("#/").split("/"):
            assert isinstance(place, dict)
            assert step in place, reference
            place = place[step]


def test_asyncapi_has_every_topic_and_each_way() -> None:
    """All of ours, which we send on but for commands, and what is read of preprocess."""
    ours = Topics.with_prefix("")
    assert set(ASYNCAPI["channels"]) == {*ours.all, *PREPROCESS_TOPICS}
    assert all(channel["address"] == name and channel["messages"] for name, channel in ASYNCAPI["channels"].items())
    sent = {
        operation["channel"]["$ref"].removeprefix("#/channels/")
        for operation in ASYNCAPI["operations"].values()
        if operation["action"] == "send"
    }
    assert sent == set(ours.all) - {ours.requested}
    assert len(ASYNCAPI["operations"]) == len(ASYNCAPI["channels"])


def test_export_writes_what_check_then_finds(tmp_path: Path) -> None:
    """A folder once written is current; export mends what is altered, lost or no longer made, and nothing else."""
    run, folder = CliRunner(), tmp_path / "new" / "contracts"
    missing = run.invoke(app, ["contracts", "export", str(folder), "--check"])
    assert missing.exit_code == 1
    assert f"{folder}/asyncapi.yaml: is not there" in missing.stderr
    assert not folder.exists()
    assert run.invoke(app, ["contracts", "export", str(folder)]).exit_code == 0
    assert run.invoke(app, ["contracts", "export", str(folder), "--check"]).exit_code == 0

    (folder / "asyncapi.yaml").write_text("asyncapi: 3.0.0\n")
    (folder / "events" / "run_failed.json").unlink()
    (folder / "events" / "run_dreamt.json").write_text('{\n  "$id": "urn:training-fsm:events:run_dreamt:1"\n}\n')
    (folder / "events" / "mine.json").write_text("{}")
    wrong = run.invoke(app, ["contracts", "export", str(folder), "--check"])
    assert wrong.exit_code == 1
    assert wrong.stderr.splitlines() == [
        f"{folder}/asyncapi.yaml: differs",
        f"{folder}/events/run_failed.json: is not there",
        f"{folder}/events/run_dreamt.json: no longer made",
        f"bring them up to date with `training-fsm contracts export {folder}`",
    ]
    assert run.invoke(app, ["contracts", "export", str(folder)]).exit_code == 0
    assert differences(folder, FILES) == []
    assert not (folder / "events" / "run_dreamt.json").exists()
    assert (folder / "events" / "mine.json").read_text() == "{}"


def test_export_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where the folder should be is no traceback."""
    (tmp_path / "contracts").write_text("a file")
    result = CliRunner().invoke(app, ["contracts", "export", str(tmp_path / "contracts")])
    assert result.exit_code == 1
    assert f"{tmp_path}/contracts" in result.stderr
