"""Reading registered model versions and their families, for people."""

from collections.abc import Sequence

import sqlalchemy as sa

from training_fsm.domain.facts import ModelRef
from training_fsm.domain.model import Model
from training_fsm.domain.run import Run
from training_fsm.domain.timeframe import UtcTime
from training_fsm.store.errors import domain_errors
from training_fsm.store.reads import PostgresReads

_VERSIONS = """
    WITH newest AS (SELECT model, max(version) AS version FROM models GROUP BY model)
    SELECT models.*, models.version = newest.version AS candidate,
           run #>> '{parent,kind}' AS parent_kind, run #>> '{continues,parent}' AS continues
    FROM models JOIN newest USING (model) JOIN run_heads USING (run_id)
"""

_LIST = sa.text(
    f"{_VERSIONS} WHERE cast(:name AS text) IS NULL OR models.model = :name "
    "ORDER BY registered_at DESC, models.version DESC LIMIT :limit"
)

_OF_ROOTS = sa.text(
    f"""
    {_VERSIONS}
    WHERE (root_model, root_version) IN (
        SELECT root_model, root_version FROM models
        WHERE (model = :name AND (cast(:version AS int) IS NULL OR version = :version))
           OR (parent_model = :name AND (cast(:version AS int) IS NULL OR parent_version = :version))
           OR (root_model = :name AND (cast(:version AS int) IS NULL OR root_version = :version))
    )
    ORDER BY registered_at, models.model, models.version
    """
)

_NUMBERS = sa.text("SELECT version, champion FROM models WHERE model = :name ORDER BY version")

_NAMES = sa.text("SELECT DISTINCT model FROM models ORDER BY model")

_RUN = sa.text(
    "SELECT run::text FROM models JOIN run_heads USING (run_id) "
    "WHERE models.model = :name AND models.version = :version ORDER BY registered_at DESC LIMIT 1"
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

    def __init__(self, reads: PostgresReads) -> None:
        self._engine = reads._engine

    def versions(self, name: str | None, limit: int) -> Sequence[ModelVersion]:
        """Versions of a name, or of all, the newest first."""
        return self._versions(_LIST, {"name": name, "limit": limit})

    def relatives(self, name: str, version: int | None = None) -> Sequence[ModelVersion]:
        """Every version whose line a version of this name is in, the oldest first."""
        return self._versions(_OF_ROOTS, {"name": name, "version": version})

    def numbers(self, name: str) -> VersionNumbers:
        """Which versions of a name there are, and which of them is champion."""
        with domain_errors(), self._engine.connect() as connection:
            rows = connection.execute(_NUMBERS, {"name": name}).all()
        champions = [row.version for row in rows if row.champion]
        return VersionNumbers(
            versions=tuple(dict.fromkeys(row.version for row in rows)), champion=champions[-1] if champions else None
        )

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
            rows = connection.execute(statement, values).all()
        return tuple(_version(row) for row in rows)


def _version(row: "sa.Row[tuple[object, ...]]") -> ModelVersion:
    columns = dict(row._mapping)
    for name in ("parent", "root"):
        model, version = columns.pop(f"{name}_model"), columns.pop(f"{name}_version")
        columns[name] = None if model is None else ModelRef(name=model, version=version)
    return ModelVersion(**columns)
