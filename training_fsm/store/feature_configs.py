"""The family's table of feature configurations, of which training is the only writer."""

import json

import sqlalchemy as sa
import structlog

from training_fsm.domain.features import FeatureConfigVersionInfo

log = structlog.get_logger()

_INSERT = sa.text(
    "INSERT INTO feature_configs (hash, semver, created_at, feature_definitions, description) VALUES "
    "(:hash, :semver, :created_at, cast(:feature_definitions AS json), :description) "
    "ON CONFLICT (hash) DO NOTHING RETURNING hash"
)

_SAME_SEMVER = sa.text("SELECT hash FROM feature_configs WHERE semver = :semver AND hash <> :hash ORDER BY hash")


def keep_feature_config(connection: sa.Connection, config: FeatureConfigVersionInfo) -> None:
    """Add a configuration that is not there yet.

    Two under one version were an error in the family once; names carry version and hash, so it is a warning.
    """
    definitions = [definition.model_dump(mode="json") for definition in config.feature_definitions]
    row = config.model_dump(exclude={"feature_definitions"}) | {"feature_definitions": json.dumps(definitions)}
    if connection.execute(_INSERT, row).first() is None:
        return
    others = connection.execute(_SAME_SEMVER, {"semver": config.semver, "hash": config.hash}).scalars().all()
    if others:
        words = "another feature configuration has the same version"
        log.warning(words, semver=config.semver, hash=config.hash, others=list(others))
