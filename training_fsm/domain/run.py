"""The aggregate: what the events of one run add up to."""

from training_fsm.domain.events import DataFrozen, EvaluationFinished, FeaturesReady, ModelRegistered
from training_fsm.domain.facts import Artifact, Failure, Fingerprint
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.model import Model
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.states import ENDS, WORK, State
from training_fsm.domain.timeframe import UtcTime


class FeatureRequest(Model):
    """The question to ingest that is open, or was last."""

    request_id: str
    attempt: int
    deadline: UtcTime
    accepted: bool = False


class Checkpoint(Model):
    """A stored checkpoint and the environment step it was taken at."""

    step: int
    artifact: Artifact
    curves: Artifact | None = None


class Run(Model):
    """One training run as of `version`; immutable, made by `evolve` only."""

    run_id: str
    version: int
    state: State
    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo
    features: FeatureRequest | None = None
    features_ready: FeaturesReady | None = None
    """The completion that came, also when it came too late; `retry_run` uses it."""
    token: int = 0
    worker: str | None = None
    data: DataFrozen | None = None
    started: bool = False
    fingerprint: Fingerprint | None = None
    tracking_run_id: str | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    """The newest last; as many as a resume may fall back to."""
    evaluation: EvaluationFinished | None = None
    registration_key: str | None = None
    registered: ModelRegistered | None = None
    attempts_failed: int = 0
    """In a row, since the last progress."""
    retry_at: UtcTime | None = None
    failure: Failure | None = None
    failed_from: State | None = None

    @property
    def ended(self) -> bool:
        """Nothing moves it on by itself."""
        return self.state in ENDS

    @property
    def claimable(self) -> bool:
        """There is work for a worker, now or after `retry_at`."""
        return self.state in WORK

    @property
    def due_at(self) -> UtcTime | None:
        """Not before then is there anything to do for whoever moves this state on."""
        match self.state:
            case State.AWAITING_FEATURES if self.features is not None:
                return self.features.deadline if self.features.accepted else self.retry_at
            case State.TRAINING | State.EVALUATING:
                return self.retry_at
            case _:
                return None
