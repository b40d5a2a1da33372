"""A training request, as a user writes it: one page, every field with its unit."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator
from pydantic_core import from_json

from training_fsm.domain.changes import Changes, changes_of, merged
from training_fsm.domain.features import FeatureConfigRequest
from training_fsm.domain.hyperparameters import AgentSettings, PPOHyperparameters
from training_fsm.domain.metrics import known_metric
from training_fsm.domain.model import Model
from training_fsm.domain.timeframe import Timeframe, TimeRange, UtcTime
from training_fsm.domain.validations import validation

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class PriceColumns(Model):
    """Which feature fields are prices. Close alone is enough."""

    close: str = Field(min_length=1)
    open: str | None = None
    high: str | None = None
    low: str | None = None
    atr: str | None = None


class DataSettings(Model):
    """Where the prices are, and which holes in the bars are too long."""

    columns: PriceColumns
    max_gap_bars: int | None = Field(default=None, gt=0)
    """Longest gap between two bars, in bars of the timeframe; absent: gaps are reported, never fatal."""


class SplitSettings(Model):
    """Training, validation and test parts in time order, by fractions or by dates."""

    training: float = Field(default=0.8, gt=0, lt=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)
    embargo_bars: int | None = Field(default=None, ge=0)
    """Bars left out between two parts; absent: max(env.window, env.max_time_in_trade, 1)."""
    train_until: UtcTime | None = None
    """First bar opening that is no longer training; goes with validation_until and replaces the fractions."""
    validation_until: UtcTime | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.train_until is None) != (self.validation_until is None):
            raise ValueError("train_until and validation_until: expected both or neither")
        if self.train_until and self.validation_until and self.validation_until <= self.train_until:
            raise ValueError("validation_until: expected a time after train_until")
        if self.train_until is None and abs(self.training + self.validation + self.test - 1) > 1e-9:
            total = self.training + self.validation + self.test
            raise ValueError(f"training + validation + test: expected a sum of 1, got {total:g}")
        return self


class EnvironmentConfig(Model):
    """The trading environment. The family's names; their units are said here."""

    start_balance: float = Field(default=10_000.0, gt=0)
    """Account currency."""
    fee: float = Field(default=0.0001, ge=0, lt=1)
    """Fraction of the traded notional, per side."""
    slippage_atr_based: float = Field(default=0.0, ge=0)
    """Slippage as a fraction of the bar's ATR; needs data.columns.atr."""
    slippage_against_trade_probability: float = Field(default=1.0, ge=0, le=1)
    """Probability that a fill slips against the trade; otherwise it does not slip."""
    max_daily_drawdown: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of the day's first equity; beyond it the episode ends."""
    max_alltime_drawdown: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of the highest equity; beyond it the episode ends."""
    max_percentage_open_position: float = Field(default=100.0, gt=0, le=1000)
    """Largest open position, percent of equity."""
    min_percentage_open_position: float = Field(default=0.0, ge=0, le=1000)
    """At 0 a held position keeps its size; above, it is resized once it is off its target by this percentage of
    equity. Closing and turning a position are always traded."""
    max_time_in_trade: int | None = Field(default=None, gt=0)
    """Bars after which a position is closed."""
    optimal_exit_time: int | None = Field(default=None, gt=0)
    """Bars; given to environments of your own, the default one does not use it."""
    variance_penalty_weight: float = Field(default=0.0, ge=0)
    """Weight of the squared change of log equity in the reward."""
    atr_penalty_weight: float = Field(default=0.0, ge=0)
    """Weight of |position| x atr / close in the reward; needs data.columns.atr."""
    long_only: bool = False
    window: int = Field(default=1, gt=0, le=1000)
    """Bars of features in one observation."""
    episode_bars: int = Field(default=252, gt=1)
    """Length of a training episode, a random window of the training part."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_percentage_open_position > self.max_percentage_open_position:
            raise ValueError("min_percentage_open_position: expected at most max_percentage_open_position")
        return self


class GateRule(Model):
    """A bound on one test metric; REGISTERED needs all of them."""

    metric: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both")
        known_metric(self.metric)
        return self


class ValidationSpec(Model):
    """A backtesting validation of the family, by name, with its parameters."""

    name: str = Field(min_length=1)
    config: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Self:
        validation(self.name, self.config)
        return self


class ChampionRule(Model):
    """The model must beat its name's champion, on the same bars, of which neither was trained on any."""

    metric: str = Field(default="sharpe", min_length=1)
    margin: float = Field(default=0.0, ge=0)
    """By more than so much, in the metric's unit; a metric of loss or cost must be lower by more than that."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        known_metric(self.metric)
        return self


class EvaluationSettings(Model):
    """How the test part judges the model."""

    gate: tuple[GateRule, ...] = Field(default=(), max_length=50)
    champion: ChampionRule | None = None
    """Absent: the model is no challenger, and becomes no champion."""
    validations: tuple[ValidationSpec, ...] = Field(default=(), max_length=50)
    periods_per_year: float | None = Field(default=None, gt=0)
    """Bars per year for annualised numbers; absent: counted from the data."""


class TrainingRequest(Model):
    """A complete request: as a user writes it for a run from scratch, or a continued one's, all inherited filled in."""

    mode: Literal["from_scratch", "continue"]
    model: str = Field(pattern=NAME)
    """Registered model name in MLflow."""
    symbol: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")
    base_timeframe: Timeframe
    timeframe: Timeframe
    range: TimeRange
    features: FeatureConfigRequest
    data: DataSettings
    split: SplitSettings = SplitSettings()
    env: EnvironmentConfig = EnvironmentConfig()
    agent: AgentSettings = AgentSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("symbol")
    @classmethod
    def _upper(cls, value: str) -> str:
        return value.upper()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.base_timeframe.minutes >= self.timeframe.minutes:
            raise ValueError(
                f"base_timeframe: expected one below timeframe {self.timeframe.value}, got {self.base_timeframe.value}"
            )
        needs_atr = self.env.slippage_atr_based > 0 or self.env.atr_penalty_weight > 0
        if needs_atr and self.data.columns.atr is None:
            raise ValueError("data.columns.atr: expected, env.slippage_atr_based or env.atr_penalty_weight needs it")
        return self

    @property
    def embargo_bars(self) -> int:
        """Bars left out between two parts of the split."""
        if self.split.embargo_bars is not None:
            return self.split.embargo_bars
        return max(self.env.window, self.env.max_time_in_trade or 0, 1)


MERGED: frozenset[type[Model]] = frozenset(
    {TimeRange, DataSettings, PriceColumns, EnvironmentConfig, AgentSettings, PPOHyperparameters, EvaluationSettings}
)
"""Parts of a request that a continued one changes field by field; split, features and lists it replaces whole."""

if TYPE_CHECKING:
    _RequestChanges = Changes
else:
    _RequestChanges = changes_of(TrainingRequest, MERGED, frozenset({"mode"}))

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(/(?P<version>[1-9][0-9]{0,8})|@(?P<alias>[A-Za-z0-9._-]{1,100}))")
_RUN_URI = re.compile(r"runs:/(?P<run>[A-Za-z0-9]{1,64})/(?P<path>[^\x00-\x1f\\]{1,500})")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PARENTS = (
    "models:/NAME/VERSION, models:/NAME@ALIAS, the id of a run, or runs:/MLFLOW_RUN/PATH of a Stable-Baselines3 zip"
)


class ContinueRequest(_RequestChanges):
    """A run that goes on from a model version: its parent, and only what changes; what is absent is inherited."""

    mode: Literal["continue"]
    parent: str = Field(min_length=1, max_length=600)
    accept_drift: bool = False
    """Train although the feature store now gives other values for bars that the parent was trained on."""

    @field_validator("parent")
    @classmethod
    def _names_a_model(cls, value: str) -> str:
        path = _RUN_URI.fullmatch(value)
        if path and ".." in path["path"].split("/"):
            raise ValueError(f"expected {_PARENTS}; got {value!r}")
        if not (path or _MODEL_URI.fullmatch(value) or _RUN_ID.fullmatch(value)):
            raise ValueError(f"expected {_PARENTS}; got {value!r}")
        return value

    @property
    def changes(self) -> dict[str, JsonValue]:
        """What the asker gives, as JSON."""
        given: dict[str, JsonValue] = self.model_dump(mode="json")
        return {name: value for name, value in given.items() if name not in ("mode", "parent", "accept_drift")}

    @property
    def model_name(self) -> str | None:
        """The name that the child will have, as far as the request alone says it."""
        named = _MODEL_URI.fullmatch(self.parent)
        given = self.changes.get("model") or (named["name"] if named else None)
        return None if given is None else str(given)


def completed(asked: ContinueRequest, inherited: Mapping[str, JsonValue]) -> TrainingRequest:
    """The complete request: what is inherited, with what the asker changes.

    Raises pydantic.ValidationError where the two do not fit together, or something is in neither.
    """
    fields = merged(TrainingRequest, inherited, asked.changes, MERGED) | {"mode": asked.mode}
    return TrainingRequest.model_validate(fields)


def _mode(value: object) -> str:
    mode = value.get("mode") if isinstance(value, dict) else getattr(value, "mode", None)
    return "continue" if mode == "continue" and not isinstance(value, TrainingRequest) else "from_scratch"


Request = Annotated[
    Annotated[TrainingRequest, Tag("from_scratch")] | Annotated[ContinueRequest, Tag("continue")], Discriminator(_mode)
]
"""What a user may ask for."""


def read_request(text: str) -> TrainingRequest | ContinueRequest:
    """A request in JSON, of either mode. Raises pydantic.ValidationError."""
    fields = from_json(text)
    kind = ContinueRequest if isinstance(fields, dict) and fields.get("mode") == "continue" else TrainingRequest
    return kind.model_validate_json(text, strict=True)
