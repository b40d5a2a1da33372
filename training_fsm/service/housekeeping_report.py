"""What a pass of housekeeping did, as JSON."""

from collections.abc import Sequence

from training_fsm.domain.facts import Artifact
from training_fsm.domain.model import Model
from training_fsm.domain.states import State
from training_fsm.domain.timeframe import UtcTime
from training_fsm.service.housekeeping_service import Pass


class ReleasedOf(Model):
    """Files that one run releases, for one reason."""

    run_id: str
    state: State
    why: str
    files: int
    size_bytes: int
    uris: tuple[str, ...]


class Files(Model):
    """So many files, and their size together."""

    files: int
    size_bytes: int


class HousekeepingReport(Model):
    """What `admin housekeeping --json` prints."""

    dry_run: bool
    complete: bool
    """Nothing was left for the next pass because something did not answer."""
    released: tuple[ReleasedOf, ...]
    deleted: Files
    held: Files
    """Released by a run, and needed by another one still."""
    left: int
    """Files that could not be deleted, for the next pass."""
    commands_pruned: int
    commands_before: UtcTime | None
    """None: the inbox was left alone."""
    remarks: tuple[str, ...]


def report_of(done: Pass, *, dry_run: bool) -> HousekeepingReport:
    """A pass in numbers, with the names of the files that it released."""
    swept, pruned = done.swept, done.pruned
    remarks = list(swept.troubles)
    remarks += (f"run {run_id} moved on again and again, its files are left for the next pass" for run_id in done.busy)
    remarks += [pruned.remark] if pruned.remark else []
    return HousekeepingReport(
        dry_run=dry_run,
        complete=done.complete,
        released=tuple(
            ReleasedOf(
                run_id=one.run_id,
                state=one.state,
                why=one.why,
                files=len(one.artifacts),
                size_bytes=one.size_bytes,
                uris=tuple(artifact.uri for artifact in one.artifacts),
            )
            for one in done.releases
        ),
        deleted=_files(swept.deleted),
        held=_files(swept.held),
        left=swept.left,
        commands_pruned=pruned.commands,
        commands_before=pruned.before,
        remarks=tuple(remarks),
    )


def _files(artifacts: Sequence[Artifact]) -> Files:
    return Files(files=len(artifacts), size_bytes=sum(artifact.size_bytes for artifact in artifacts))
