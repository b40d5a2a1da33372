"""What a continued run needs before it can train: its parent, and what of its features Feast has."""

from pydantic import JsonValue

from training_fsm.client.digest import file_digest
from training_fsm.client.model_folder import read_record, the_zip
from training_fsm.domain.continuation import resolve
from training_fsm.domain.decide import EVENT_BYTES_MAX, last_look, looked_up
from training_fsm.domain.errors import ParentMissing, ParentUnfit
from training_fsm.domain.facts import Failure
from training_fsm.domain.lineage import Parent
from training_fsm.domain.needed_ranges import needed_ranges, same_market
from training_fsm.domain.request import ContinueRequest
from training_fsm.service.model_lifecycle_service import FoundParent
from training_fsm.worker import protocol as p
from training_fsm.worker.session import RunSession


def resolve_parent(session: RunSession) -> None:
    """Bring a continued run from REQUESTED to AWAITING_FEATURES: find its parent, check it, settle what is trained.

    Raises ParentMissing, ParentUnfit, ArtifactDamaged, and what `RunSession.ask` and the stores raise.
    """
    asked = session.run.continues
    assert asked is not None, "only a continued run has a parent"
    outside = session.outside
    found = outside.lifecycle.find_parent(asked.parent, session.folder / "parent", outside.log.registered)
    record = read_record(found.path)
    if record is None:
        parent, inherited = _from_zip(session, asked, found)
    else:
        # Both are checked now: whatever is gone or altered is told before anybody computes features.
        outside.artifacts.get(record.checkpoint, session.folder / "parent-checkpoint")
        outside.artifacts.get(record.data.artifact, session.folder / "parent-data")
        parent, inherited = (
            Parent(
                kind="training_fsm",
                model=found.found.model,
                digest=found.digest,
                checkpoint=record.checkpoint,
                steps=record.steps,
                record=record,
            ),
            {},
        )
    resolved = resolve(asked, parent, session.now(), inherited)
    size = len(resolved.model_dump_json().encode())
    if size > EVENT_BYTES_MAX:
        words = f"the request with all that it inherits has {size} bytes, expected at most {EVENT_BYTES_MAX}"
        raise ParentUnfit(Failure(kind="parent_unfit", words=words))
    session.append(resolved)


def _from_zip(session: RunSession, asked: ContinueRequest, found: FoundParent) -> tuple[Parent, dict[str, JsonValue]]:
    """A Stable-Baselines3 zip that somebody logged by hand; stored again beside the run, by its digest."""
    path = the_zip(found.path)
    if path is None:
        words = f"{asked.parent} holds neither a model of this service nor a Stable-Baselines3 zip"
        raise ParentMissing(Failure(kind="parent_missing", words=words, service="mlflow", field="parent"))
    sha256 = file_digest(path)
    trusted = sha256 in session.settings.trusted_model_digests
    inspected = session.ask(p.Inspect(path=path, sha256=sha256, trusted=trusted), p.Inspected)
    tracking_run_id = session.outside.tracking.open_run(session.run.run_id, {}, {})
    parent = Parent(
        kind="sb3_whole" if trusted else "sb3_weights",
        model=found.found.model,
        digest=sha256,
        checkpoint=session.outside.artifacts.put(tracking_run_id, "parent", path),
        steps=inspected.steps,
        record=None,
    )
    return parent, inspected.inherited


def look_up_features(session: RunSession) -> None:
    """Bring a run to TRAINING where Feast has all that it needs.

    Else ingest is asked for what is lacking, or, after the deadline, the run fails.
    """
    run, (request, feature_config) = session.run, session.run.plan
    if run.features is not None:
        asked = (run.features.range or request.range,)
        order = p.LookUp(request=request, feature_config=feature_config, ranges=asked, known=False)
        found = session.ask(order, p.LookedUp)
        session.append(*last_look(run, found.service, found.lacking))
        return
    record = run.parent.record if run.parent is not None else None
    order = p.LookUp(
        request=request,
        feature_config=feature_config,
        ranges=needed_ranges(request, record),
        known=record is not None and same_market(request, record),
    )
    found = session.ask(order, p.LookedUp)
    now, policy = session.now(), session.settings.policy
    session.append(*looked_up(run, found.service, found.lacking, now, policy))
