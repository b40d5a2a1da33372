from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from training_fsm.cli.event_summary import summary
from training_fsm.domain import events as e
from training_fsm.domain.facts import Contest, Difference, Failure, ModelRef, SharedRows
from training_fsm.domain.lineage import Change
from training_fsm.domain.states import State

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
FAILURE = Failure(kind="data_unusable", words="NaN in close", field="close", range="2017-03-01")


def _others(life: tuple[e.Event, ...]) -> tuple[e.Event, ...]:
    started = next(event for event in life if isinstance(event, e.TrainingStarted))
    letter: dict[str, object] = dict.fromkeys(e.MessageDeadLettered.model_fields)
    letter |= {"topic": "t", "partition": 0, "offset": 7, "reason": "no JSON"}
    letter |= {"sha256": "", "size_bytes": 1, "headers": ()}
    return (
        e.TrainingResumed(
            token=2, step=2048, checkpoint="a", fidelity="exact", fingerprint=started.fingerprint, differences=()
        ),
        e.ChampionPromoted(name="eurusd-ppo", version=3, digest="d", run_id="r", supersedes=None),
        e.ModelRejected(failed=("sharpe",)),
        e.AttemptFailed(reason=FAILURE, attempt=2, retry_at=datetime(2026, 11, 24, tzinfo=UTC)),
        e.RunFailed(reason=FAILURE, failed_from=State.TRAINING),
        e.RunCancelled(actor="me", why="enough"),
        e.RunRetried(actor="me", why=""),
        e.PauseRequested(actor="me", why=""),
        e.RunPaused(actor="me", why="lunch", step=2048),
        e.RunResumed(actor="me", why=""),
        e.RunExtended(actor="me", why="", additional_timesteps=4096),
        e.RejectionOverridden(actor="me", why="shown to nobody"),
        e.FeaturesIncomplete(service="s", field="rsi", range=None, words="no rows"),
        e.DeadlinePassed(request_id="q"),
        e.ArtifactsReleased(artifacts=(), why="superseded"),
        e.LogRestored(last_position=2, published_position=4),
        e.CommandRefused(command_id="1", command_source="s", command_type="cancel_run", run_id="r", reason="no run"),
        e.MessageDeadLettered.model_validate(letter | {"bytes": ""}),
    )


E = TypeVar("E", bound=e.Event)
Continued = Callable[..., tuple[e.Event, ...]]


def _event(events: tuple[e.Event, ...], kind: type[E]) -> E:
    return next(event for event in events if isinstance(event, kind))


def test_every_event_has_a_line(life: Callable[[str], tuple[e.Event, ...]], continued_life: Continued) -> None:
    """No type of event is shown without a word about what happened."""
    events = (*life("r"), *continued_life("s", lacking=True), *_others(life("r")))
    assert {event.type() for event in events} == set(e.EVENT_TYPES)
    assert [event.type() for event in events if not summary(event)] == []


def test_a_continued_run_says_what_it_goes_on_from(continued_life: Continued) -> None:
    """The parent with its step, what changes, where features came from, what is carried over, whose child it is."""
    events = continued_life("s")
    assert summary(events[0]) == "continues models:/eurusd-ppo/3"
    assert summary(_event(events, e.ParentResolved)) == (
        "eurusd-ppo/3, at step 10,240; 2 fields change: agent.seed: 0 -> 1, "
        "range.end: 2018-01-01T00:00:00Z -> 2018-04-01T00:00:00Z"
    )
    assert summary(_event(events, e.FeaturesReady)) == "all of them are in Feast, nobody was asked"
    assert summary(_event(events, e.TrainingStarted)).endswith(
        "; goes on at step 10,240: carried weights, optimizer, steps, reward normalisation; "
        "reset generators because agent.seed 0 / 1; reset environments because other data, agent.seed"
    )
    assert summary(_event(events, e.ModelRegistered)).endswith(", child of eurusd-ppo/3")


def test_what_is_lacking_is_asked_for(continued_life: Continued) -> None:
    """The range that Feast lacks stands in the lack and in the question."""
    events = continued_life("s", lacking=True)
    lacking = summary(_event(events, e.FeaturesLacking))
    assert lacking == "observation_space_EURUSD_4h_1.0.0_abc lacks 2018-01-01 to 2018-04-01"
    assert " for 2018-01-01 to 2018-04-01, until " in summary(_event(events, e.FeaturesRequested))


def test_only_the_first_changes_are_named(continued_life: Continued) -> None:
    """Three of them, and how many more there are; none is said too."""
    resolved = _event(continued_life("s"), e.ParentResolved)
    changes = tuple(Change(field=f"f{number}", parent=None, child='"x"') for number in range(5))
    many = summary(resolved.model_copy(update={"changes": changes}))
    assert many.endswith("; 5 fields change: f0: absent -> x, f1: absent -> x, f2: absent -> x, and 2 more")
    assert summary(resolved.model_copy(update={"changes": changes[:1]})).endswith("; 1 field changes: f0: absent -> x")
    assert summary(resolved.model_copy(update={"changes": ()})).endswith("; no field changes")


def test_a_zip_as_parent_is_said_so(continued_life: Continued) -> None:
    """A file that is no version has no name; how much of it is read is said."""
    resolved = _event(continued_life("s"), e.ParentResolved)
    zipped = resolved.parent.model_copy(update={"kind": "sb3_weights", "model": None, "record": None, "steps": 0})
    assert summary(resolved.model_copy(update={"parent": zipped})) == (
        "a file, a Stable-Baselines3 zip, weights only, at step 0; "
        "it has no request that the 2 fields of this one could differ from"
    )


def test_shared_bars_say_whether_they_are_the_parent_s(continued_life: Continued) -> None:
    """Equal, different with the first place, or not there to be compared."""
    frozen = _event(continued_life("s"), e.DataFrozen)

    def said(**found: object) -> str:
        shared = SharedRows(start=NOON, end=NOON, rows=1200, parent_digest="a", **found)
        return summary(frozen.model_copy(update={"shared": shared})).rpartition("; ")[2]

    first = Difference(time=NOON, column="rsi", parent=50.0, found=None)
    assert said(found_digest="a", rows_different=0, first_difference=None) == (
        "1,200 rows shared with the parent, compared: equal"
    )
    assert said(found_digest="b", rows_different=3, first_difference=first) == (
        "1,200 rows shared with the parent, compared: 3 differ, first rsi at 2026-11-24 12:00:00Z: 50.0 -> None"
    )
    assert said(found_digest=None, rows_different=0, first_difference=None) == (
        "1,200 rows shared with the parent, not compared: Feast has none of them any more"
    )


def test_a_contest_names_the_champion_and_both_numbers(life: Callable[[str], tuple[e.Event, ...]]) -> None:
    """Where nobody is champion yet there was nothing to beat."""
    evaluated = _event(life("r"), e.EvaluationFinished)
    contest = Contest(champion=None, stream_version=0, metric="sharpe")
    alone = evaluated.model_copy(update={"contest": contest})
    assert summary(alone) == "passed, 1 of 1 rules hold; no champion yet to beat"
    kept = {"champion": ModelRef(name="eurusd-ppo", version=2), "obstacle": "3 bars lie behind the training of both"}
    apart = evaluated.model_copy(update={"contest": contest.model_copy(update=kept)})
    assert summary(apart).endswith("; not against eurusd-ppo/2: 3 bars lie behind the training of both")
    against = {
        "champion": ModelRef(name="eurusd-ppo", version=2),
        "bars": 300,
        "challenger_metrics": {"sharpe": 0.8},
        "champion_metrics": {"sharpe": 0.5},
    }
    judged = evaluated.model_copy(update={"contest": contest.model_copy(update=against)})
    assert summary(judged).endswith("; against eurusd-ppo/2 on 300 bars: sharpe 0.8 vs 0.5")


def test_orders_say_who_gave_them_and_why() -> None:
    """And the number that matters, where there is one."""
    assert summary(e.RunPaused(actor="me", why="lunch", step=2048)) == "at step 2,048 by me (lunch)"
    assert summary(e.RunExtended(actor="me", why="", additional_timesteps=4096)) == "by 4,096 steps by me"
    assert summary(e.RunCancelled(actor="", why="enough")) == "(enough)"


def test_a_champion_says_whom_it_follows() -> None:
    """The first of its name follows nobody."""
    promoted = e.ChampionPromoted(name="eurusd-ppo", version=3, digest="d", run_id="r", supersedes=1)
    assert summary(promoted) == "eurusd-ppo version 3, in place of 1"
    first = promoted.model_copy(update={"supersedes": None})
    assert summary(first) == "eurusd-ppo version 3, its first champion"


def test_a_failure_names_its_place() -> None:
    """Field and range stand beside the words."""
    line = summary(e.RunFailed(reason=FAILURE, failed_from=State.TRAINING))
    assert line == "data_unusable: NaN in close [field close, range 2017-03-01]"
