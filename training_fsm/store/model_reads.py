"""Reading registered model versions and their families, for people."""

from collections.abc import Sequence

import sqlalchemy as sa

from training_fsm.domain.facts import ModelRef
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run
from training_fsm.domain.timeframe import UtcTime
from training_fsm.store.errors import domain_errors

# The folded runs are long: what finds a version is taken out of each once, all else only out of those found.
_KNOWN = """
    WITH taken AS MATERIALIZED (
        SELECT run_id, changed_at, (run -> 'registered')::jsonb AS model FROM run_heads WHERE state = 'REGISTERED'
    ), known AS MATERIALIZED (
        SELECT run_id, changed_at, model ->> 'name' AS name, (model ->> 'version')::int AS version,
               model #>> '{parent,name}' AS parent_name, (model #>> '{parent,version}')::int AS parent_version,
               coalesce(model #>> '{root,name}', model ->> 'name') AS root_name,
               coalesce(model #>> '{root,version}', model ->> 'version')::int AS root_version,
               max((model ->> 'version')::int) OVER (PARTITION BY model ->> 'name') AS newest
        FROM taken
    )
"""

_LIST = sa.text(
    f"""
    {_KNOWN}
    SELECT run_id, version = newest AS candidate FROM known WHERE cast(:name AS text) IS NULL OR name = :name
    ORDER BY changed_at DESC, name, version DESC LIMIT :limit
    """
)

_OF_ROOTS = sa.text(
    f"""
    {_KNOWN}
    SELECT run_id, version = newest AS candidate FROM known WHERE (root_name, root_version) IN (
        SELECT root_name, root_version FROM known
        WHERE (name = :name AND (cast(:version AS int) IS NULL OR version = :version))
           OR (parent_name = :name AND (cast(:version AS int) IS NULL OR parent_version = :version))
           OR (root_name = :name AND (cast(:version AS int) IS NULL OR root_version = :version))
    )
    ORDER BY changed_at, name, version
    """
)

_VERSIONS = sa.text(
    """
    SELECT models.*, run #>> '{parent,kind}' AS parent_kind, run #>> '{continues,parent}' AS continues
    FROM models JOIN run_heads USING (run_id) WHERE run_heads.run_id = ANY(:ids)
    """
)

_NUMBERS = sa.text(
    f"""
    {_KNOWN}
    SELECT array_agg(DISTINCT version ORDER BY version) AS versions,
           (SELECT (payload ->> 'version')::int FROM events
            WHERE stream = 'model-' || :name ORDER BY events.version DESC LIMIT 1) AS champion
    FROM known WHERE name = :name
    """
)

_NAMES = sa.text(f"{_KNOWN} SELECT DISTINCT name FROM known ORDER BY name")

_RUN = sa.text(
    f"""
    {_KNOWN}
    SELECT run::text FROM run_heads WHERE run_id = (
        SELECT run_id FROM known WHERE name = :name AND version = :version ORDER BY changed_at DESC LIMIT 1
    )
    """
)


class ModelVersion(Model):
    """A registered version with its place in its line, what it was trained on, and what it was worth."""

    model: str
    version: int
    run_id: str
    parent: ModelRef | None
    """None for the first of a line, and for a child of a file that is no version."""
    root: ModelRef
    """First of its line that is a version; it may be one that this log does not know."""
    depth: int
    """Generations since the first of the line."""
    continues: str | None
    """The parent as the request names it; None for a run from scratch."""
    parent_kind: str | None
    """`training_fsm`, or `sb3_weights` or `sb3_whole` for a Stable-Baselines3 zip."""
    champion: bool
    candidate: bool
    """It is the newest version of its name."""
    symbol: str
    timeframe: str
    data_start: UtcTime
    data_end: UtcTime
    """Of the request's range, half-open."""
    data_digest: str | None
    feature_semver: str
    feature_hash: str
    steps: int | None
    """Environment steps that its weights have seen, those of all ancestors included."""
    test_total_return_fraction: float | None
    test_sharpe: float | None
    test_max_drawdown_fraction: float | None
    registered_at: UtcTime

    @property
    def ref(self) -> ModelRef:
        """Name and version."""
        return ModelRef(name=self.model, version=self.version)


class VersionNumbers(Model):
    """The versions that there are of a name."""

    versions: tuple[int, ...]
    champion: int | None


class PostgresModelReads:
    """What people ask about models; every method raises OutsideUnavailable where Postgres does not answer."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def versions(self, name: str | None, limit: int) -> Sequence[ModelVersion]:
        """Versions of a name, or of all, the newest first."""
        return self._versions(_LIST, {"name": name, "limit": limit})

    def relatives(self, name: str, version: int | None = None) -> Sequence[ModelVersion]:
        """Every version whose line a version of this name is in, the oldest first."""
        return self._versions(_OF_ROOTS, {"name": name, "version": version})

    def numbers(self, name: str) -> VersionNumbers:
        """Which versions of a name there are, and which of them is champion."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(_NUMBERS, {"name": name}).one()
        return VersionNumbers(versions=tuple(row.versions or ()), champion=row.champion)

    def names(self) -> Sequence[str]:
        """Every name under which a version is registered."""
        with domain_errors(), self._engine.connect() as connection:
            return tuple(connection.execute(_NAMES).scalars())

    def run(self, ref: ModelRef) -> Run | None:
        """The run that a version came from, the newest where a registry has begun to count anew."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(_RUN, {"name": ref.name, "version": ref.version}).scalar_one_or_none()
        return None if row is None else Run.model_validate_json(row)

    def _versions(self, statement: sa.TextClause, values: dict[str, object]) -> Sequence[ModelVersion]:
        with domain_errors(), self._engine.connect() as connection:
            candidates = {row.run_id: row.candidate for row in connection.execute(statement, values)}
            rows = connection.execute(_VERSIONS, {"ids": list(candidates)}).all()
        versions = {row.run_id: _version(row, candidate=candidates[row.run_id]) for row in rows}
        return tuple(versions[run_id] for run_id in candidates)


def _version(row: "sa.Row[tuple[object, ...]]", *, candidate: bool) -> ModelVersion:
    columns = dict(row._mapping)
    for name in ("parent", "root"):
        model, version = columns.pop(f"{name}_model"), columns.pop(f"{name}_version")
        columns[name] = None if model is None else ModelRef(name=model, version=version)
    return ModelVersion(**columns, candidate=candidate)
