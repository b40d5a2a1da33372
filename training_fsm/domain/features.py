"""The feature configuration as it travels through the family, and its hash."""

import hashlib
import json
from typing import Self

from pydantic import Field, JsonValue, model_validator

from training_fsm.domain.model import Model
from training_fsm.domain.timeframe import UtcTime


class FeatureDefinition(Model):
    """One feature and the parameter sets it is computed with; names and shape are the family's."""

    name: str = Field(min_length=1, max_length=100)
    enabled: bool = True
    derivatives: tuple[int, ...] = ()
    raw_parameter_sets: tuple[dict[str, JsonValue], ...] = ()
    parsed_parameter_sets: dict[str, JsonValue] = Field(default_factory=dict)


def definitions_hash(definitions: tuple[FeatureDefinition, ...]) -> str:
    """First 10 hex digits of sha256 over the definitions as JSON, keys sorted, Python's default separators."""
    text = json.dumps([definition.model_dump(mode="json") for definition in definitions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class FeatureConfigRequest(Model):
    """What a user writes: `hash` and `created_at` are filled in where absent."""

    semver: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    feature_definitions: tuple[FeatureDefinition, ...] = Field(min_length=1, max_length=200)
    hash: str = Field(default="", max_length=64)
    created_at: UtcTime | None = None
    description: str | None = Field(default=None, max_length=1000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not any(definition.enabled for definition in self.feature_definitions):
            raise ValueError("feature_definitions: at least one must be enabled")
        expected = definitions_hash(self.feature_definitions)
        if self.hash not in ("", expected):
            raise ValueError(f"hash: these definitions hash to {expected!r}, got {self.hash!r}; leave it out")
        return self

    def versioned(self, now: UtcTime) -> "FeatureConfigVersionInfo":
        """The complete configuration; `now` stands in for an absent `created_at`."""
        return FeatureConfigVersionInfo(
            semver=self.semver,
            hash=definitions_hash(self.feature_definitions),
            created_at=self.created_at or now,
            feature_definitions=self.feature_definitions,
            description=self.description,
        )


class FeatureConfigVersionInfo(Model):
    """A feature configuration with its version and hash, as ingest, preprocess and Feast know it."""

    semver: str
    hash: str
    created_at: UtcTime
    feature_definitions: tuple[FeatureDefinition, ...]
    description: str | None = None
