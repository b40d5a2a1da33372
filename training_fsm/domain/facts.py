"""Values that events carry."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

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
        "parent_missing",
        "parent_unfit",
        "data_drifted",
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


class Difference(Model):
    """Where two frames differ first, and what each has there; None for a bar that one of them lacks."""

    time: UtcTime
    column: str
    parent: float | None
    found: float | None


class SharedRows(Model):
    """The bars that a parent was trained on and its child uses too: the parent's, against what Feast gives now."""

    start: UtcTime
    end: UtcTime
    """Opening of the last shared bar."""
    rows: int
    parent_digest: str
    found_digest: str | None
    """None where Feast has none of these bars any more: there was nothing to compare."""
    rows_different: int
    first_difference: Difference | None


class FrozenData(Model):
    """Checked rows of a run and everything that its training and evaluation take from them."""

    digest: str
    """sha256 over the columns' canonical bytes; independent of the file's encoding."""
    rows: int
    warmup_rows: int
    gaps: Gaps
    periods_per_year: float
    observation_columns: tuple[str, ...]
    bounds: SplitBounds
    normalisation: tuple[ColumnNormalisation, ...]
    warnings: tuple[str, ...] = ()
    shared: SharedRows | None = None
    """Only with a parent of the same symbol and timeframe whose range overlaps."""


class Artifact(Model):
    """A stored file and the digest of its bytes."""

    uri: str
    sha256: str
    size_bytes: int


class Header(Model):
    """A header of a message."""

    name: str
    value_base64: str


class StoredData(FrozenData):
    """Frozen rows and where their file lies."""

    artifact: Artifact


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


class ModelRef(Model):
    """A version in the model registry."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Contest(Model):
    """A challenger against the champion, both evaluated afresh on bars that neither was trained on."""

    champion: ModelRef | None
    """None where the model had no champion yet: nothing was compared."""
    stream_version: int
    """Version of the stream `model-<name>` that said who is champion; a promotion must find it unchanged."""
    metric: str
    start: UtcTime | None = None
    end: UtcTime | None = None
    """Openings of the first and the last bar of the comparison."""
    bars: int = 0
    obstacle: str | None = None
    """Why the two could not be compared; the challenger has not won then."""
    challenger_metrics: dict[str, float] = Field(default_factory=dict)
    champion_metrics: dict[str, float] = Field(default_factory=dict)


class Judgement(Model):
    """What a backtest was worth, and what the request's gate and validations say of it."""

    metrics: dict[str, float]
    bands: tuple[MetricBand, ...]
    gate: tuple[Verdict, ...]
    validations: tuple[Verdict, ...]
    passed: bool
    """Every rule of the gate and every validation; without any, everything passes."""
    contest: Contest | None = None
    """Only where the gate asks for it; its verdict is the one named `champion`."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of what did not pass."""
        return tuple(verdict.name for verdict in (*self.gate, *self.validations) if not verdict.passed)


class Progress(Model):
    """How far a training is, as its worker's heartbeat tells; no event, and gone with the next one."""

    step: int
    total: int
    steps_per_s: float
    reward: float | None
    """Mean episode reward of the last rollouts."""
    eta_s: float | None
    at: UtcTime
