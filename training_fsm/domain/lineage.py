"""Where a model comes from: its parent, what it inherits of it, and the record that travels with every version."""

from typing import Literal

from training_fsm.domain.facts import Artifact, Fingerprint, ModelRef, StoredData
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.model import Model
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import UtcTime


class TrainingRecord(Model):
    """`training.json` of a registered model: everything that a child needs of it, wherever the child's log lies."""

    format: Literal[1] = 1
    run_id: str
    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo
    data: StoredData
    checkpoint: Artifact
    """After the last update."""
    steps: int
    """Environment steps that the weights have seen, those of all ancestors included."""
    fingerprint: Fingerprint
    trained_until: UtcTime
    """Opening of the last bar that this model, or an ancestor on the same symbol and timeframe, was trained on."""
    parent: ModelRef | None
    root: ModelRef | None
    """First of the line; None where this model is it, or its first parent is in no registry."""
    depth: int
    """Generations since the root."""


class Parent(Model):
    """What a run continues, as it was found and checked; nothing of it is looked up again."""

    kind: Literal["training_fsm", "sb3_weights", "sb3_whole"]
    """A model of ours with its last checkpoint; a Stable-Baselines3 zip of which only the weights are read; or one
    whose digest the operator allows, read whole."""
    model: ModelRef | None
    """None for a file that is no version in the registry."""
    digest: str
    """sha256 of the version's folder, or of the zip."""
    checkpoint: Artifact
    """The last checkpoint, or the zip."""
    steps: int
    """Environment steps that the child's counters go on from."""
    record: TrainingRecord | None
    """None for a zip, which does not say what it was trained on."""

    @property
    def root(self) -> ModelRef | None:
        """First of the line that the child will belong to."""
        return self.model if self.record is None or self.record.root is None else self.record.root

    @property
    def depth(self) -> int:
        """Generations from the root to the child."""
        return 1 if self.record is None else self.record.depth + 1


class Change(Model):
    """One field in which a request differs from the parent's; values as JSON, None where there is none."""

    field: str
    parent: str | None
    child: str | None


Part = Literal["weights", "optimizer", "steps", "reward_normalisation", "generators", "environments"]
"""What a training consists of besides data and settings: counters are `steps`; `environments` are their states,
with the last observations and episode records."""


class Reset(Model):
    """A part that begins anew, and why."""

    part: Part
    why: str


class Inheritance(Model):
    """What of the parent's training goes on in the child, and what begins anew."""

    carried: tuple[Part, ...]
    reset: tuple[Reset, ...]
