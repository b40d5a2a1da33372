"""A training request, as a user writes it: one page, every field with its unit."""

from typing import Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from training_fsm.domain.features import FeatureConfigRequest
from training_fsm.domain.hyperparameters import AgentSettings
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


class EvaluationSettings(Model):
    """How the test part judges the model."""

    gate: tuple[GateRule, ...] = Field(default=(), max_length=50)
    validations: tuple[ValidationSpec, ...] = Field(default=(), max_length=50)
    periods_per_year: float | None = Field(default=None, gt=0)
    """Bars per year for annualised numbers; absent: counted from the data."""


class TrainingRequest(Model):
    """A run from scratch, complete."""

    mode: Literal["from_scratch"]
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
