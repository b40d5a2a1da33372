"""Values that events carry."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from training_fsm.domain.model import Model
from training_fsm.domain.timeframe import UtcTime


def _storable(text: str) -> str:
    """Without NUL characters and lone surrogates, which Postgres cannot read back."""
    return text.replace("\x00", "�").encode("utf-8", "replace").decode()[-MAX_WORDS:]


MAX_WORDS = 16_384
Words = Annotated[str, AfterValidator(_storable)]


class Failure(Model):
    """Why something failed, readable by the one who asked for it."""

    kind: Literal[
        "ingest_refused",
        "ingest_unavailable",
        "preprocess_failed",
        "features_missing",
        "data_unusable",
        "deadline",
        "training_error",
        "evaluation_error",
        "worker_crashed",
        "artifact_damaged",
        "outside_unavailable",
        "resume_impossible",
    ]
    words: Words
    """What happened, in one sentence."""
    service: str | None = None
    field: str | None = None
    range: str | None = None
    detail: Words | None = None
    """The last lines of a traceback or of another service's answer."""


class ColumnNormalisation(Model):
    """Mean and standard deviation of one observation column over the training rows."""

    column: str
    mean: float
    deviation: float


class PartBounds(Model):
    """Rows [first, last) of the frozen frame that a part of the split takes, and their bar openings."""

    first: int
    last: int
    start: UtcTime
    end: UtcTime
    """Opening of the part's last bar."""


class SplitBounds(Model):
    """The three parts; the rows between them are the embargo."""

    training: PartBounds
    validation: PartBounds
    test: PartBounds


class Gaps(Model):
    """Steps between bars that are longer than the timeframe."""

    count: int
    longest_bars: int
    longest_after: UtcTime | None
    """Opening of the bar before the longest gap."""


class Fingerprint(Model):
    """What the bytes of the weights depend on besides data, request and seed."""

    python: str
    torch: str
    numpy: str
    stable_baselines3: str
    gymnasium: str
    training_fsm: str
    cpu_capability: str
    blas: str
    torch_threads: int
    device: str
    platform: str

    def differences(self, other: "Fingerprint") -> tuple[str, ...]:
        """Names of the fields in which the two differ, with both values."""
        mine, theirs = self.model_dump(), other.model_dump()
        return tuple(f"{name}: {mine[name]} / {theirs[name]}" for name in mine if mine[name] != theirs[name])


class Artifact(Model):
    """A stored file and the digest of its bytes."""

    uri: str
    sha256: str
    size_bytes: int


class MetricBand(Model):
    """A block-bootstrap confidence band of a metric."""

    metric: str
    low: float
    high: float
    confidence: float


class Verdict(Model):
    """The outcome of one rule of the gate or of one validation."""

    name: str
    passed: bool
    score: float
    threshold: float
    explanation: str


class Progress(Model):
    """How far a training is, as its worker's heartbeat tells; no event, and gone with the next one."""

    step: int
    total: int
    steps_per_s: float
    reward: float | None
    """Mean episode reward of the last rollouts."""
    eta_s: float | None
    at: UtcTime
