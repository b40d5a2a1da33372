"""The aggregate: what the events of one run add up to."""

from typing import Literal, NamedTuple

from training_fsm.domain.events import (
    DataFrozen,
    EvaluationFinished,
    FeaturesReady,
    ModelRegistered,
    PauseRequested,
    RejectionOverridden,
)
from training_fsm.domain.facts import Artifact, Failure, Fingerprint
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.lineage import Parent
from training_fsm.domain.model import Model
from training_fsm.domain.request import ContinueRequest, TrainingRequest
from training_fsm.domain.states import ENDS, WORK, State
from training_fsm.domain.timeframe import TimeRange, UtcTime


class FeatureRequest(Model):
    """The question to ingest that is open, or was last."""

    request_id: str
    attempt: int
    deadline: UtcTime
    range: TimeRange | None = None
    """Absent: the request's whole range."""
    context: Literal["training", "backfill"] = "training"
    accepted: bool = False
    overdue: bool = False
    """Its deadline passed; a last look into the feature store decides."""


class Checkpoint(Model):
    """A stored checkpoint and the environment step it was taken at."""

    step: int
    artifact: Artifact
    curves: Artifact | None = None


class Plan(NamedTuple):
    """What is trained, complete, whichever mode it was asked in."""

    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo


class Run(Model):
    """One training run as of `version`; immutable, made by `evolve` only."""

    run_id: str
    version: int
    state: State
    request: TrainingRequest | None
    """What is trained; None until a continued run's parent is resolved."""
    feature_config: FeatureConfigVersionInfo | None
    continues: ContinueRequest | None = None
    """What the user asked for in mode continue."""
    parent: Parent | None = None
    features: FeatureRequest | None = None
    features_ready: FeaturesReady | None = None
    """The completion that came, also when it came too late; `retry_run` uses it."""
    token: int = 0
    worker: str | None = None
    data: DataFrozen | None = None
    started: bool = False
    fingerprint: Fingerprint | None = None
    tracking_run_id: str | None = None
    pause: PauseRequested | None = None
    """Wanted and not done yet."""
    extended_timesteps: int = 0
    """Environment steps beyond the request's whole rollouts."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """The newest last; as many as a resume may fall back to."""
    evaluation: EvaluationFinished | None = None
    overridden: RejectionOverridden | None = None
    """Who has it registered although its evaluation did not pass."""
    registration_key: str | None = None
    registered: ModelRegistered | None = None
    files_released: bool = False
    """Its frozen data, or the checkpoint it would go on from, may be deleted: nothing brings it back to life."""
    attempts_failed: int = 0
    """In a row, since the last progress."""
    retry_at: UtcTime | None = None
    failure: Failure | None = None
    failed_from: State | None = None

    @property
    def plan(self) -> Plan:
        """What is trained; to be asked for only once a continued run's parent is resolved."""
        assert self.request is not None, "nothing is trained before the parent is resolved"
        assert self.feature_config is not None, "it comes with the request"
        return Plan(self.request, self.feature_config)

    @property
    def ended(self) -> bool:
        """Nothing moves it on by itself."""
        return self.state in ENDS

    @property
    def looks_up(self) -> bool:
        """A worker is to look something up before anything is trained: the parent, or what Feast has."""
        if self.state is State.AWAITING_FEATURES:
            return self.features is None or self.features.overdue
        return self.state is State.REQUESTED and self.continues is not None

    @property
    def claimable(self) -> bool:
        """There is work for a worker, now or after `retry_at`."""
        return self.state in WORK or self.looks_up

    @property
    def model(self) -> str:
        """Registered model name; empty while a continued run has not resolved its parent and does not say it."""
        if self.request is not None:
            return self.request.model
        return (self.continues and self.continues.model_name) or ""

    @property
    def symbol(self) -> str:
        """Empty until it is known, as `model`."""
        return "" if self.request is None else self.request.symbol

    @property
    def timeframe(self) -> str:
        """Empty until it is known, as `model`."""
        return "" if self.request is None else self.request.timeframe.value

    @property
    def first_step(self) -> int:
        """Environment steps that the parent had done; where this run's begin."""
        return 0 if self.parent is None else self.parent.steps

    @property
    def last_step(self) -> int | None:
        """Environment step at which the training ends."""
        if self.request is None:
            return None
        agent = self.request.agent
        return self.first_step + agent.whole(agent.whole_timesteps + self.extended_timesteps)

    @property
    def due_at(self) -> UtcTime | None:
        """Not before then is there anything to do for whoever moves this state on."""
        if self.claimable:
            return self.retry_at
        if self.state is State.AWAITING_FEATURES and self.features is not None:
            return self.features.deadline if self.features.accepted else self.retry_at
        return None
