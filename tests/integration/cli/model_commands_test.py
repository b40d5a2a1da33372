import json
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from typer.testing import Result

Cli = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("models")


def _words(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines() if line.strip()]


def test_list_has_every_version_the_newest_first(cli: Cli) -> None:
    """With parent, marks, data and test metrics; narrowed by name and number."""
    result = cli("model", "list", "--name", "eurusd-ppo")
    assert result.exit_code == 0, result.output
    _, third, *others = _words(result)
    assert (third[0], third[3:6]) == ("eurusd-ppo/3", ["eurusd-ppo/1", "champion,", "candidate"])
    assert third[-4:] == ["20,480", "3.10%", "0.8", "-"]
    assert [row[0] for row in others if row[0].startswith("eurusd")] == ["eurusd-ppo/2", "eurusd-ppo/1"]
    listed = json.loads(cli("model", "list", "-n", "4", "--json").stdout)
    assert [f"{entry['model']}/{entry['version']}" for entry in listed] == [
        "tamed/2",
        "tamed/1",
        "night/1",
        "eurusd-ppo/3",
    ]
    assert listed[0]["parent"] == {"name": "handmade", "version": 7}
    assert "run" not in listed[0]


def test_lineage_draws_the_tree_across_names(cli: Cli) -> None:
    """The whole line with metrics side by side, the one that was asked for marked."""
    drawn = cli("model", "lineage", "eurusd-ppo/2").stdout.splitlines()
    assert [line.partition("  ")[0].rstrip() for line in drawn[1:4]] == [
        "eurusd-ppo/1",
        "├─ eurusd-ppo/2 ◀",
        "└─ eurusd-ppo/3",
    ]
    assert drawn[4].startswith("   └─ night/1")
    assert len(drawn) == 5
    assert drawn[3].split()[2:4] == ["champion,", "candidate"]
    assert "2017-01-01 to 2018-07-01" in drawn[3]
    assert cli("model", "lineage", "night").stdout == cli("model", "lineage", "eurusd-ppo").stdout


def test_lineage_shows_parents_that_are_not_here(cli: Cli) -> None:
    """A model that nobody here registered has its place in the tree."""
    drawn = cli("model", "lineage", "tamed").stdout.splitlines()[1:]
    assert drawn[0].split() == ["handmade/7", "not", "in", "this", "log"]
    assert "from an SB3 zip" in drawn[1]
    assert cli("model", "lineage", "handmade").stdout.splitlines()[1:] == drawn


def test_lineage_as_json_is_in_the_order_of_the_tree(cli: Cli) -> None:
    """Flat, with parent and generation, since lines may be long."""
    members = json.loads(cli("model", "lineage", "eurusd-ppo@champion", "--json").stdout)
    assert [(member["model"], member["version"], member["generation"]) for member in members] == [
        ("eurusd-ppo", 1, 0),
        ("eurusd-ppo", 2, 1),
        ("eurusd-ppo", 3, 1),
        ("night", 1, 2),
    ]
    assert [member["asked_for"] for member in members] == [False, False, True, False]
    assert members[2]["details"]["steps"] == 20_480
    unknown, *_ = json.loads(cli("model", "lineage", "tamed", "--json").stdout)
    assert unknown["details"] is None


def test_show_tells_a_version_s_story(cli: Cli) -> None:
    """Marks, run, children, parent, data, rules; the same as JSON with the whole run."""
    card = " ".join(cli("model", "show", "eurusd-ppo@champion").stdout.split())
    for expected in (
        "model eurusd-ppo version 3, champion, candidate",
        "run run-3 ",
        "steps 20,480, the first 10,240 are the parent's",
        "children night/1 ",
        "parent eurusd-ppo/1, at step 10,240",
        "contest against eurusd-ppo/1 on 149 bars: sharpe 0.8 vs 0.61",
    ):
        assert expected in card
    found = json.loads(cli("model", "show", "models:/eurusd-ppo/1", "--json").stdout)
    assert found["children"] == [{"name": "eurusd-ppo", "version": 2}, {"name": "eurusd-ppo", "version": 3}]
    assert found["run"]["registered"]["version"] == 1
    assert "children none" in " ".join(cli("model", "show", "tamed").stdout.split())


def test_compare_lists_what_differs_and_counts_the_rest(cli: Cli) -> None:
    """Kinship, data, settings and metrics, each with both values; equal things are a number."""
    shown = cli("model", "compare", "eurusd-ppo/2", "eurusd-ppo@champion")
    assert shown.exit_code == 0, shown.output
    lines = [" ".join(words) for words in _words(shown)]
    assert lines[0] == "eurusd-ppo/2 and eurusd-ppo/3 are siblings, both continue eurusd-ppo/1"
    for expected in (
        "range.end 2018-01-01T00:00:00Z 2018-07-01T00:00:00Z",
        "digest 222222222222… 333333333333…",
        "3 feature fields are equal",
        "agent.hyperparameters.gamma 0.99 0.9",
        "37 settings are equal",
        "sharpe 0.7 0.8 +0.1",
        "1 test metric is equal",
    ):
        assert expected in lines
    found = json.loads(cli("model", "compare", "eurusd-ppo/2", "eurusd-ppo", "--json").stdout)
    assert found["kinship"]["common_ancestor"] == {"name": "eurusd-ppo", "version": 1}
    assert len(found["data"]["different"][0]["b"]) == len('"') * 2 + 64


def test_compare_says_how_two_are_related(cli: Cli) -> None:
    """Descent either way, and none at all."""

    def first_line(a: str, b: str) -> str:
        return cli("model", "compare", a, b).stdout.splitlines()[0]

    assert first_line("eurusd-ppo/1", "night") == "night/1 descends from eurusd-ppo/1, 2 generations down"
    assert first_line("night", "eurusd-ppo") == "night/1 descends from eurusd-ppo/3, 1 generation down"
    assert first_line("night", "eurusd-ppo/2") == (
        "night/1 and eurusd-ppo/2 both descend from eurusd-ppo/1, 2 and 1 generations down"
    )
    assert first_line("night", "tamed") == "night/1 and tamed/2 have no common ancestor"
    assert first_line("night", "night/1") == "night/1 is compared with itself"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "eurusd-pp"], 1, "there is no model eurusd-pp in this log; there is eurusd-ppo and 2 more"),
        (["lineage", "zzz"], 1, "there is no model zzz in this log; there is eurusd-ppo, night, tamed"),
        (["list", "--name", "nite"], 1, "there is no model nite in this log; there is night and 2 more"),
        (["show", "eurusd-ppo/9"], 1, "there is no version 9 of eurusd-ppo in this log; there is 1 to 3"),
        (["compare", "night", "tamed@champion"], 1, "tamed has no champion yet; its newest version is 2"),
        (["show", "a@best"], 2, "expected NAME, NAME/VERSION, NAME@champion or NAME@candidate, got 'a@best'"),
        (["lineage", "a/b/c"], 2, "expected NAME, NAME/VERSION, NAME@champion or NAME@candidate, got 'a/b/c'"),
    ],
)
def test_what_is_not_there_names_what_is(cli: Cli, words: list[str], code: int, said: str) -> None:
    """One line on stderr with the nearest that there is."""
    result = cli("model", *words)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"{said}\n")


def test_a_log_without_models_says_so(cli: Cli, engine: sa.Engine) -> None:
    """An empty list is no error; asking for one by name is."""
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM run_heads"))
    assert cli("model", "list").stdout == "no models\n"
    assert cli("model", "show", "x").stderr == "no model is registered yet\n"
