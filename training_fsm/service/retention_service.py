"""Releases the stored files that a run needs no more. Whatever is deleted was released by an event before."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from training_fsm.domain.errors import Conflict
from training_fsm.domain.events import ArtifactsReleased
from training_fsm.domain.evolve import CHECKPOINTS_KEPT
from training_fsm.domain.facts import Artifact
from training_fsm.domain.machine import arrows
from training_fsm.domain.run import Run
from training_fsm.domain.states import ENDS, State
from training_fsm.ports import Cause, EventLog
from training_fsm.service.audit_log import LoggedEvent
from training_fsm.service.conflicts import on_conflict_again
from training_fsm.service.stored_files import RunFiles, files_of

ACTOR = "housekeeping"

RELEASING = frozenset(source for source, event, _ in arrows() if event == ArtifactsReleased.type())
"""States in which a run can release files."""
WITHOUT_MODEL = ENDS - {State.REGISTERED}
"""Ends after which a run's data is kept for a while only."""

FILES_PER_EVENT = 400
"""An event has a greatest size, and a file takes some 500 bytes of it at most."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept beyond that which must be."""

    checkpoints: int
    """The newest ones of each run."""
    data: timedelta
    """Frozen data of a run that ended without a model, from its end on."""


@dataclass(frozen=True, slots=True)
class Release:
    """Files that one event of a run releases."""

    run_id: str
    state: State
    why: str
    artifacts: tuple[Artifact, ...]

    @property
    def size_bytes(self) -> int:
        """All of them together."""
        return sum(artifact.size_bytes for artifact in self.artifacts)


class RunsWithFiles(Protocol):
    """What the retention reads."""

    def candidates(self, states: Sequence[State], ended: Sequence[State], checkpoints: int) -> Sequence[str]:
        """Ids of the runs in `states` that have more checkpoints than these, or have ended as one of `ended`."""
        ...

    def run_files(self, run_id: str) -> tuple[Run, Sequence[LoggedEvent]]:
        """A run, and those of its events up to that version that name or release files or change its state."""
        ...


def releases(run: Run, files: RunFiles, retention: Retention, now: datetime) -> tuple[Release, ...]:
    """The files that the run needs no more and has not released yet.

    The log does not say which checkpoint was the best: the newest are kept. While the run may go on, whatever a
    resume may fall back to is kept; the last one, the frozen data and the parent of a registered model are kept for
    ever, and so are all reports.
    """
    if run.state not in RELEASING or files.since is None:
        return ()
    expired = run.state in WITHOUT_MODEL and now - files.since > retention.data
    final = expired or run.state in (State.REGISTERED, State.CANCELLED)
    count = retention.checkpoints if final else max(retention.checkpoints, CHECKPOINTS_KEPT)
    newest = list(dict.fromkeys(checkpoint.artifact.uri for checkpoint in reversed(files.checkpoints)))[:count]
    kept = files.lasting | set(newest)
    kept |= {checkpoint.artifact.uri for checkpoint in run.checkpoints[-count:]}
    kept |= {saved.curves.uri for saved in files.checkpoints if saved.curves and saved.artifact.uri in kept}
    if not expired:
        kept |= {artifact.uri for artifact in files.inputs}
    older = (part for saved in files.checkpoints for part in (saved.artifact, saved.curves) if part is not None)
    days = f"{retention.data / timedelta(days=1):g} days"
    return (
        *_releases(run, f"older than the newest {count} checkpoints", older, kept, files),
        *_releases(run, f"{run.state.value} for more than {days}", files.inputs, kept, files),
    )


def _releases(run: Run, why: str, candidates: Iterable[Artifact], kept: set[str], files: RunFiles) -> Iterator[Release]:
    going = {
        artifact.uri: artifact
        for artifact in candidates
        if artifact.uri not in kept and not files.ledger.released(artifact.uri)
    }
    artifacts = tuple(going.values())
    for start in range(0, len(artifacts), FILES_PER_EVENT):
        yield Release(run.run_id, run.state, why, artifacts[start : start + FILES_PER_EVENT])


class RetentionService:
    """Decides for each run what it releases, and appends that by compare-and-set on the run's version."""

    def __init__(self, log: EventLog, runs: RunsWithFiles, retention: Retention) -> None:
        self._log = log
        self._runs = runs
        self._retention = retention

    def planned(self, now: datetime) -> tuple[Release, ...]:
        """What would be released now."""
        plans = (self._plan(run_id, now)[1] for run_id in self._candidates())
        return tuple(release for plan in plans for release in plan)

    def release(self, pass_id: str, now: datetime) -> tuple[tuple[Release, ...], tuple[str, ...]]:
        """Release what no run needs any more; and the ids of runs that moved on again and again meanwhile."""
        done: list[Release] = []
        busy = []
        for run_id in self._candidates():
            if not self._plan(run_id, now)[1]:
                continue
            try:
                done += self._release(run_id, Cause(ACTOR, pass_id, run_id))
            except Conflict:
                busy.append(run_id)
        return tuple(done), tuple(busy)

    def _candidates(self) -> Sequence[str]:
        return self._runs.candidates(sorted(RELEASING), sorted(WITHOUT_MODEL), self._retention.checkpoints)

    def _plan(self, run_id: str, now: datetime) -> tuple[int, tuple[Release, ...]]:
        run, events = self._runs.run_files(run_id)
        return run.version, releases(run, files_of(events), self._retention, now)

    @on_conflict_again
    def _release(self, run_id: str, cause: Cause) -> tuple[Release, ...]:
        run, events = self._runs.run_files(run_id)
        files = files_of(events)
        with self._log.begin() as unit:
            if unit.runs([run_id])[run_id].version != run.version:
                raise Conflict(f"run {run_id} has moved on since version {run.version}")
            plan = releases(run, files, self._retention, unit.now)
            if plan:
                events_ = [ArtifactsReleased(artifacts=one.artifacts, why=one.why) for one in plan]
                unit.append(run_id, events_, cause)
        return plan
