"""What a continued run trains, and how much of its parent's training goes on."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from pydantic import JsonValue, ValidationError

from tests.conftest import parent_of
from training_fsm.domain import events as e
from training_fsm.domain.continuation import changes_between, inheritance, resolve
from training_fsm.domain.errors import ParentUnfit
from training_fsm.domain.facts import ModelRef, StoredData
from training_fsm.domain.lineage import Change, Parent
from training_fsm.domain.request import ContinueRequest, read_request
from training_fsm.domain.timeframe import TimeRange

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
Life = Callable[[str], tuple[e.Event, ...]]
ALL = ("weights", "optimizer", "steps", "reward_normalisation", "generators", "environments")


def asked(**changes: JsonValue) -> ContinueRequest:
    """A wish to continue version 3 with these changes."""
    return ContinueRequest.model_validate({"mode": "continue", "parent": "models:/eurusd-ppo/3", **changes})


@pytest.fixture
def parent(life: Life) -> Parent:
    """Version 3 of eurusd-ppo."""
    return parent_of(life("parent"))


def data_of(parent: Parent) -> StoredData:
    """What the parent was trained on."""
    assert parent.record is not None
    return parent.record.data


def test_without_changes_the_parent_s_request_is_trained(parent: Parent) -> None:
    """All of it is inherited, its feature configuration too, and nothing is a change."""
    resolved = resolve(asked(), parent, NOON)
    assert parent.record is not None
    assert resolved.request == parent.record.request.model_copy(update={"mode": "continue"})
    assert resolved.feature_config == parent.record.feature_config
    assert resolved.changes == ()


def test_what_is_given_stands_in_the_parent_s_place_field_by_field(parent: Parent) -> None:
    """The rest of a section stays the parent's; a schedule replaces a number as a whole."""
    schedule = {"schedule": "linear", "start": 1e-3, "end": 0.0}
    given = asked(
        range={"end": "2018-04-01T00:00:00Z"},
        agent={"total_timesteps": 4096, "hyperparameters": {"learning_rate": schedule, "gamma": 0.9}},
        env={"fee": 0.001},
    )
    resolved = resolve(given, parent, NOON)
    request = resolved.request
    assert request.range == TimeRange(start="2017-01-01T00:00:00Z", end="2018-04-01T00:00:00Z")
    assert (request.agent.total_timesteps, request.agent.seed) == (4096, 0)
    assert (request.agent.hyperparameters.gamma, request.agent.hyperparameters.n_steps) == (0.9, 2048)
    assert {change.field for change in resolved.changes} == {
        "range.end",
        "agent.total_timesteps",
        "agent.hyperparameters.learning_rate",
        "agent.hyperparameters.gamma",
        "env.fee",
    }
    assert Change(field="env.fee", parent="0.0001", child="0.001") in resolved.changes


def test_a_null_takes_away_what_the_parent_had(parent: Parent) -> None:
    """What is absent is inherited, what is null is not."""
    assert parent.record is not None
    before = parent.record.request
    bounded = before.model_copy(update={"env": before.env.model_copy(update={"max_daily_drawdown": 0.05})})
    record = parent.record.model_copy(update={"request": bounded})
    parent = parent.model_copy(update={"record": record})
    assert resolve(asked(), parent, NOON).request.env.max_daily_drawdown == 0.05
    assert resolve(asked(env={"max_daily_drawdown": None}), parent, NOON).request.env.max_daily_drawdown is None


def test_a_split_replaces_the_parent_s_split_whole(parent: Parent) -> None:
    """Dates of the parent would win over fractions of the child otherwise."""
    split = {"train_until": "2017-08-01T00:00:00Z", "validation_until": "2017-10-01T00:00:00Z"}
    by_dates = resolve(asked(split=split), parent, NOON)
    assert parent.record is not None
    record = parent.record.model_copy(update={"request": by_dates.request})
    grandchild = resolve(
        asked(split={"training": 0.6, "validation": 0.2, "test": 0.2}),
        parent.model_copy(update={"record": record}),
        NOON,
    )
    assert grandchild.request.split.train_until is None
    assert grandchild.request.split.training == 0.6


@pytest.mark.parametrize(
    ("changes", "field", "sides"),
    [
        ({"env": {"window": 5}}, "env.window", "the parent has 1, the request 5"),
        ({"env": {"long_only": True}}, "env.long_only", "the parent has false, the request true"),
        ({"agent": {"net_arch": [32]}}, "agent.net_arch", "the parent has [64, 64], the request [32]"),
        (
            {"agent": {"hyperparameters": {"activation_fn": "relu"}}},
            "agent.hyperparameters.activation_fn",
            'the parent has "tanh", the request "relu"',
        ),
        (
            {"features": {"semver": "2.0.0", "feature_definitions": [{"name": "rsi"}]}},
            "features.semver",
            "the parent has 1.0.0, the request 2.0.0",
        ),
        (
            {"features": {"semver": "1.0.0", "feature_definitions": [{"name": "macd"}]}},
            "features.hash",
            "the parent has",
        ),
    ],
)
def test_what_may_not_change_is_told_with_both_sides(
    changes: dict[str, JsonValue], field: str, sides: str, parent: Parent
) -> None:
    """Field by field, before anything is trained."""
    with pytest.raises(ParentUnfit) as caught:
        resolve(asked(**changes), parent, NOON)
    assert caught.value.failure.kind == "parent_unfit"
    assert caught.value.failure.field == field
    assert f"{field}: {sides}" in caught.value.failure.words


def test_several_unchangeable_fields_are_told_at_once(parent: Parent) -> None:
    """Nobody should have to ask twice."""
    with pytest.raises(ParentUnfit) as caught:
        resolve(asked(env={"window": 5, "long_only": True}), parent, NOON)
    assert caught.value.failure.field == "env.long_only, env.window"


def test_changes_that_do_not_fit_the_rest_name_the_field(parent: Parent) -> None:
    """Each field may be right by itself and wrong beside what is inherited."""
    with pytest.raises(ParentUnfit, match="batch_size: expected at most n_steps x n_envs = 2048, got 4096") as caught:
        resolve(asked(agent={"hyperparameters": {"batch_size": 4096}}), parent, NOON)
    assert caught.value.failure.field == "agent.hyperparameters.batch_size"


def test_a_zip_says_nothing_so_the_request_must_say_all(parent: Parent, request_fields: dict[str, JsonValue]) -> None:
    """What is missing is named; whole, it is trained, and every field is a change."""
    model = ModelRef(name="by-hand", version=1)
    zipped = parent.model_copy(update={"kind": "sb3_weights", "record": None, "steps": 0, "model": model})
    with pytest.raises(ParentUnfit, match="symbol: missing"):
        resolve(asked(), zipped, NOON)
    given = {name: value for name, value in request_fields.items() if name not in ("mode", "model")}
    resolved = resolve(asked(**given), zipped, NOON)
    assert resolved.request.model == "by-hand"
    assert resolved.feature_config == resolved.request.features.versioned(NOON)
    assert Change(field="symbol", parent=None, child='"EURUSD"') in resolved.changes
    assert (zipped.root, zipped.depth) == (model, 1)


def test_a_trusted_zip_s_settings_are_inherited(parent: Parent, request_fields: dict[str, JsonValue]) -> None:
    """And the request's own win over them."""
    zipped = parent.model_copy(update={"kind": "sb3_whole", "record": None})
    given = {name: value for name, value in request_fields.items() if name != "mode"}
    inherited: dict[str, JsonValue] = {"agent": {"net_arch": [8], "hyperparameters": {"gamma": 0.5, "n_steps": 128}}}
    agent = {"hyperparameters": {"gamma": 0.6}}
    request = resolve(asked(**given, agent=agent), zipped, NOON, inherited).request
    assert request.agent.net_arch == (8,)
    assert (request.agent.hyperparameters.gamma, request.agent.hyperparameters.n_steps) == (0.6, 128)


def test_the_net_of_a_zip_may_not_change_either(parent: Parent, request_fields: dict[str, JsonValue]) -> None:
    """Its shapes are known before anything is computed."""
    zipped = parent.model_copy(update={"kind": "sb3_weights", "record": None})
    given = {name: value for name, value in request_fields.items() if name != "mode"}
    inherited: dict[str, JsonValue] = {"agent": {"net_arch": [8]}}
    with pytest.raises(ParentUnfit, match=r"agent.net_arch: the parent has \[8\], the request \[64, 64\]"):
        resolve(asked(**given, agent={"net_arch": [64, 64]}), zipped, NOON, inherited)
    assert resolve(asked(**given), zipped, NOON, inherited).request.agent.net_arch == (8,)


def test_all_goes_on_where_nothing_changed(parent: Parent) -> None:
    """As if the training had never stopped."""
    inherited = inheritance(parent, resolve(asked(), parent, NOON).request, data_of(parent))
    assert (inherited.carried, inherited.reset) == (ALL, ())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"env": {"fee": 0.01}}, {"environments": "other env"}),
        ({"agent": {"n_envs": 2}}, {"environments": "other agent.n_envs"}),
        ({"agent": {"seed": 4}}, {"generators": "agent.seed 0 / 4", "environments": "other agent.seed"}),
        ({"agent": {"device": "cuda"}}, {"generators": "agent.device cpu / cuda"}),
        ({"data": {"columns": {"open": "open"}}}, {"environments": "other data.columns"}),
        ({"agent": {"hyperparameters": {"gamma": 0.9}}}, {}),
    ],
)
def test_what_begins_anew_says_why(changes: dict[str, JsonValue], why: dict[str, str], parent: Parent) -> None:
    """Weights, optimizer and counters always go on; the rest where nothing that it depends on changed."""
    found = inheritance(parent, resolve(asked(**changes), parent, NOON).request, data_of(parent))
    assert {reset.part: reset.why for reset in found.reset} == why
    assert set(found.carried) | {reset.part for reset in found.reset} == set(ALL)


def test_other_data_begin_the_environments_anew(parent: Parent) -> None:
    """Their states are rows of the parent's data."""
    other = data_of(parent).model_copy(update={"digest": "0" * 64})
    found = inheritance(parent, resolve(asked(), parent, NOON).request, other)
    assert [(reset.part, reset.why) for reset in found.reset] == [("environments", "other data")]


def test_of_a_zip_only_what_it_holds_goes_on(parent: Parent, request_fields: dict[str, JsonValue]) -> None:
    """Weights alone, or with optimizer and counters."""
    given = {name: value for name, value in request_fields.items() if name not in ("mode",)}
    for kind, carried in (("sb3_weights", ("weights",)), ("sb3_whole", ("weights", "optimizer", "steps"))):
        zipped = parent.model_copy(update={"kind": kind, "record": None})
        found = inheritance(zipped, resolve(asked(**given), zipped, NOON).request, data_of(parent))
        assert found.carried == carried


def test_the_line_of_descent_counts_from_its_root(parent: Parent) -> None:
    """A root's child has depth 1, its child depth 2, and both the same root."""
    assert (parent.root, parent.depth) == (parent.model, 1)
    assert parent.record is not None
    child = parent.record.model_copy(update={"parent": parent.model, "root": parent.root, "depth": parent.depth})
    grandparent = parent.model
    of_child = parent.model_copy(update={"record": child, "model": ModelRef(name="eurusd-ppo", version=4)})
    assert (of_child.root, of_child.depth) == (grandparent, 2)


def test_requests_are_compared_by_path(parent: Parent) -> None:
    """Only what differs; values as JSON."""
    assert parent.record is not None
    before = parent.record.request
    after = before.model_copy(update={"symbol": "GBPUSD"})
    assert changes_between(before, after) == (Change(field="symbol", parent='"EURUSD"', child='"GBPUSD"'),)


@pytest.mark.parametrize(
    "uri",
    ["models:/m/3", "models:/eurusd.ppo-1@champion", "0a1b2c3d", "runs:/abc123/models/ppo.zip", "a-run_of.ours"],
)
def test_every_form_of_parent_is_taken(uri: str) -> None:
    """A version, an alias, a run, a file."""
    assert asked(parent=uri).parent == uri


@pytest.mark.parametrize(
    "uri",
    ["models:/m", "models:/m/0", "models:/m/x", "models:/m/3/x", "runs:/abc", "runs:/abc/../x", "", "a b", "s3://b/x"],
)
def test_other_forms_of_parent_are_refused_with_those_there_are(uri: str) -> None:
    """At the door, before anybody looks anything up."""
    with pytest.raises(ValidationError, match="parent"):
        asked(parent=uri)


def test_a_continue_request_comes_back_from_its_text_with_only_what_was_given() -> None:
    """Absent stays absent and null stays null: they mean different things."""
    text = asked(env={"max_daily_drawdown": None}, range={"end": "2018-01-01T00:00:00Z"}).model_dump_json()
    back = read_request(text)
    assert isinstance(back, ContinueRequest)
    assert back.changes == {"env": {"max_daily_drawdown": None}, "range": {"end": "2018-01-01T00:00:00Z"}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"mode": "continue", "parent": "models:/m/1", "agent": {"foo": 1}}', "agent.foo"),
        ('{"mode": "continue", "parent": "models:/m/1", "agent": {"hyperparameters": {"gamma": 2}}}', "gamma"),
        ('{"mode": "continue", "parent": "models:/m/1", "agent": {"seed": null}}', "agent.seed"),
        ('{"mode": "continue"}', "parent"),
        ('{"mode": "continue", "parent": "models:/m/1", "evaluation": {"champion": {"metric": "luck"}}}', "luck"),
    ],
)
def test_each_given_field_is_checked_at_the_door(text: str, words: str) -> None:
    """With the constraints of the whole request, though most of it is not there."""
    with pytest.raises(ValidationError, match=words):
        read_request(text)
