"""Release, delete, prune: on real Postgres and MLflow, with passes that die at the worst moments."""

import signal
import subprocess
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from training_fsm.domain import events as e
from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.facts import Artifact, Failure
from training_fsm.domain.states import State
from training_fsm.ports import Cause, InboxEntry
from training_fsm.service.housekeeping_service import AnotherPassError, MessageLifetime
from training_fsm.service.retention_service import Retention
from training_fsm.store.housekeeping import PostgresHousekeeping

if TYPE_CHECKING:
    from conftest import House

FAILED = e.RunFailed(reason=Failure(kind="training_error", words="w"), failed_from=State.TRAINING)
AT_ONCE = Retention(checkpoints=3, data=timedelta(0))
MONTH = Retention(checkpoints=3, data=timedelta(days=30))
CAUSE = Cause("worker-1", "work", "r")

DIES = """
import os, signal, sys
from datetime import timedelta
from training_fsm.client.artifact_store import MlflowArtifacts
from training_fsm.client.mlflow_connection import MlflowConnection
from training_fsm.service.housekeeping_service import HousekeepingService, MessageLifetime
from training_fsm.service.retention_service import Retention
from training_fsm.store.engine import make_engine
from training_fsm.store.event_log import PostgresEventLog
from training_fsm.store.housekeeping import PostgresHousekeeping

url, mlflow, moment, after = sys.argv[1:]
left = int(after)

class Topic:
    def lifetime(self):
        return MessageLifetime(timedelta(days=7))

class Dying(MlflowArtifacts):
    def delete(self, artifact):
        global left
        if left == 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().delete(artifact)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

engine = make_engine(url, application_name="dies")
service = HousekeepingService(
    PostgresEventLog(engine), PostgresHousekeeping(engine), Topic(), Retention(3, timedelta(0)), timedelta(days=30)
)
service.run(Dying(MlflowConnection(mlflow)))
"""


def _names(numbers: range) -> set[str]:
    return {f"checkpoint-{n}.{kind}" for n in numbers for kind in ("zip", "curves.json")}


def test_a_pass_deletes_what_no_run_needs_and_nothing_else(house: "House") -> None:
    """Old checkpoints with their curves; of a failed run the data, of a model only what it does not need."""
    house.trained("training", 5)
    assert house.tidy(AT_ONCE).swept.size_bytes > 0
    assert house.there() == {"frozen.parquet"} | _names(range(3, 6))
    house.append("training", FAILED)
    failed = house.tidy(MONTH)
    assert (failed.releases, failed.swept.deleted) == ((), [])
    house.tidy(AT_ONCE)
    assert house.there() == _names(range(3, 6))
    again = house.tidy(AT_ONCE)
    assert (again.releases, again.swept.deleted, again.complete) == ((), [], True)


def test_all_that_a_model_needs_is_kept_for_ever(house: "House") -> None:
    """Its last checkpoint, its frozen data and its report, whatever the settings say."""
    house.registered("r", 4)
    house.tidy(Retention(checkpoints=1, data=timedelta(0)))
    assert house.there() == {"frozen.parquet", "backtest.json"} | _names(range(4, 5))


def test_a_dry_run_says_what_a_pass_then_does(house: "House") -> None:
    """And changes nothing itself."""
    house.trained("r", 5, [FAILED])
    before = house.there()
    planned = house.service(AT_ONCE).plan()
    assert (house.there(), house.released()) == (before, [])
    done = house.tidy(AT_ONCE)
    assert done.releases == planned.releases
    assert {artifact.uri for artifact in done.swept.deleted} == {artifact.uri for artifact in planned.swept.deleted}
    assert len(done.swept.deleted) == 5


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("deletions", [0, 2])
def test_a_pass_that_is_killed_is_taken_up_by_the_next(house: "House", moment: str, deletions: int) -> None:
    """SIGKILL between release and delete, or between a delete and its record: each file is released once and goes."""
    house.trained("r", 5, [FAILED])
    url = house.engine.url.render_as_string(hide_password=False)
    words = [sys.executable, "-c", DIES, url, house.mlflow_url, moment, str(deletions)]
    died = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    recorded = house.rows("SELECT count(*) FROM released_files WHERE deleted_at IS NOT NULL")
    assert recorded == [(deletions,)]
    released = house.released()
    assert len(released) == 5
    assert len(house.there()) == 11 - deletions - (moment == "after")
    done = house.tidy(AT_ONCE)
    assert len(done.swept.deleted) == 5 - deletions
    assert house.released() == released
    assert house.there() == _names(range(3, 6))
    assert house.rows("SELECT count(*) FROM released_files WHERE deleted_at IS NULL") == [(0,)]


def test_an_append_in_between_makes_the_release_be_decided_anew(
    house: "House", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody retries the failed run while its data is about to be released: the data stays."""
    house.trained("r", 2, [FAILED])
    read, raced = PostgresHousekeeping.run_files, []

    def read_late(self: PostgresHousekeeping, run_id: str) -> object:
        found = read(self, run_id)
        if len(raced) == 1:  # the second read is the one that the release is decided on
            house.append("r", e.RunRetried(actor="a", why=""))
        raced.append(run_id)
        return found

    monkeypatch.setattr(PostgresHousekeeping, "run_files", read_late)
    done = house.tidy(AT_ONCE)
    assert (done.releases, done.busy, len(raced)) == ((), (), 3)
    assert "frozen.parquet" in house.there()


def test_a_worker_goes_on_over_a_release(house: "House") -> None:
    """Its next append finds the run at another version under its own token, and is taken."""
    with house.log.begin() as unit:
        unit.append("r", house.life("r")[:4], CAUSE)
    claimed = house.log.claim("worker-1", 60, "r")
    assert claimed is not None
    run, lease = claimed
    run = house.log.append_fenced(lease, house.life("r")[5:7], CAUSE, run.version)
    for number in range(1, 6):
        name = f"runs:/gone/c/{'a' * 16}-{number}"
        saved = e.CheckpointSaved(step=number, uri=name, sha256=f"{number}" + "a" * 63, size_bytes=1)
        run = house.log.append_fenced(lease, [saved], CAUSE, run.version)
    plan = house.service(AT_ONCE)._retention.release("pass", house.log.now())
    assert [len(one.artifacts) for one in plan[0]] == [2]
    after = house.log.append_fenced(lease, [e.PauseRequested(actor="a", why="")], CAUSE, run.version)
    assert after.version == run.version + 2


def test_a_file_that_another_run_names_is_held_back(house: "House") -> None:
    """It goes once that run has released it too."""
    run = house.trained("r", 1)
    assert run.data is not None
    shared = house.life("other")[5].model_copy(update={"artifact": run.data.artifact})
    with house.log.begin() as unit:
        unit.append("other", [*house.life("other")[:5], shared], CAUSE)
    house.append("r", FAILED)
    held = house.tidy(AT_ONCE)
    assert ([one.uri for one in held.swept.held], held.swept.deleted) == ([run.data.artifact.uri], [])
    assert "frozen.parquet" in house.there()
    house.append("other", FAILED)
    done = house.tidy(AT_ONCE)
    assert ([one.uri for one in done.swept.deleted], done.swept.held) == ([run.data.artifact.uri], [])
    assert "frozen.parquet" not in house.there()
    assert house.rows("SELECT run_id FROM released_files WHERE deleted_at IS NOT NULL ORDER BY 1") == [
        ("other",),
        ("r",),
    ]


def test_a_store_that_is_away_leaves_the_rest_for_the_next_pass(house: "House") -> None:
    """The inbox is pruned all the same, and what was released stays released."""
    house.trained("r", 5)

    class Away:
        def delete(self, artifact: Artifact) -> None:
            raise OutsideUnavailable("mlflow", f"{artifact.uri}: timed out")

    done = house.tidy(AT_ONCE, Away())
    assert (done.complete, len(done.swept.troubles), done.swept.left) == (False, 3, 4)
    assert done.pruned.before is not None
    assert len(house.tidy(AT_ONCE).swept.deleted) == 4


def test_one_pass_is_at_work_at_a_time(house: "House") -> None:
    """The second one says so."""
    with PostgresHousekeeping(house.engine).alone() as alone:
        assert alone
        with pytest.raises(AnotherPassError):
            house.tidy()
    assert house.tidy().complete


def _commands(house: "House", ages_days: list[int]) -> None:
    for age in ages_days:
        with house.log.begin() as unit:
            unit.accept(InboxEntry("s", str(age), "cancel_run", "r", "accepted", None))
        with house.engine.begin() as connection:
            statement = (
                "UPDATE commands SET received_at = received_at - make_interval(days => :age) WHERE command_id = :id"
            )
            connection.execute(sa.text(statement), {"age": age, "id": str(age)})


@pytest.mark.parametrize(
    ("answer", "kept", "words"),
    [
        (MessageLifetime(timedelta(days=7)), {"1", "29"}, None),
        (MessageLifetime(timedelta(days=40)), {"1", "29", "31"}, "for up to 40 days"),
        (MessageLifetime(None), {"1", "29", "31", "50"}, "for ever"),
        (None, {"1", "29"}, "does not tell"),
        (OutsideUnavailable("kafka", "timed out"), {"1", "29", "31", "50"}, "left alone: kafka: timed out"),
    ],
)
def test_a_command_is_forgotten_only_when_it_cannot_be_read_again(
    house: "House", answer: MessageLifetime | Exception | None, kept: set[str], words: str | None
) -> None:
    """After its days, and never while the message can still lie in its topic."""
    _commands(house, [1, 29, 31, 50])
    house.topic.answer = answer
    planned = house.service(MONTH).plan().pruned
    done = house.tidy(MONTH).pruned
    assert (planned.commands, planned.remark) == (done.commands, done.remark)
    assert {row[0] for row in house.rows("SELECT command_id FROM commands")} == kept
    assert done.commands == 4 - len(kept)
    assert (words is None and done.remark is None) or words in (done.remark or "")


def test_many_old_commands_are_forgotten_in_portions(house: "House") -> None:
    """More than one statement takes at once."""
    with house.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO commands SELECT 's', n::text, 'cancel_run', NULL, 'refused', 'no', "
                "clock_timestamp() - interval '40 days' FROM generate_series(1, 20001) AS n"
            )
        )
    assert house.tidy(MONTH).pruned.commands == 20_001
    assert house.rows("SELECT count(*) FROM commands") == [(0,)]


def test_a_release_is_dated_by_the_database(house: "House") -> None:
    """As every event; the projection has the same time and version."""
    house.trained("r", 4)
    house.tidy()
    events = house.rows("SELECT version, occurred_at, actor FROM events WHERE type = 'artifacts_released'")
    projected = house.rows("SELECT DISTINCT version, released_at FROM released_files")
    assert [(row[0], row[1]) for row in events] == projected
    assert events[0][2] == "housekeeping"
    assert isinstance(events[0][1], datetime)
