"""A trained MLP policy without the library that trained it: raw features in, target positions out.

This file is copied into every exported model and must import nothing but numpy, pandas and the standard library.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class NormalisedColumn(TypedDict):
    """A feature with its mean and standard deviation over the training rows."""

    column: str
    mean: float
    deviation: float


class AccountColumn(TypedDict):
    """A column of the account and what it is divided by."""

    column: str
    unit: float


class Specification(TypedDict):
    """What this code reads of spec.json."""

    window: int
    normalisation: list[NormalisedColumn]
    account_fields: list[AccountColumn]
    observation_bound: float
    activation: str
    positions: list[float]


@dataclass(frozen=True)
class MlpPolicy:
    """Linear layers with an activation between them, as in Stable-Baselines3's MlpPolicy; float32 throughout."""

    layers: Sequence[tuple[Floats, Floats]]
    """Weights (units out x units in) and bias of each layer; the last one gives the logits."""
    activation: str

    def logits(self, observations: Floats) -> Floats:
        """Observations x fields in, observations x actions out."""
        values = observations
        for weights, bias in self.layers[:-1]:
            values = activate(self.activation, values @ weights.T + bias)
        weights, bias = self.layers[-1]
        return values @ weights.T + bias

    def action(self, observation: Floats) -> int:
        """The most probable action for one observation; the first of equals."""
        return int(self.logits(observation).argmax())


def activate(name: str, values: Floats) -> Floats:
    """torch's activation of that name with its default parameters."""
    if name == "tanh":
        return np.tanh(values)
    if name == "relu":
        return np.maximum(values, np.float32(0))
    if name == "elu":
        return np.where(values > 0, values, np.expm1(np.minimum(values, np.float32(0))))
    if name == "leaky_relu":
        return np.where(values > 0, values, np.float32(0.01) * values)
    raise ValueError(f"activation: expected tanh, relu, elu or leaky_relu, got {name!r}")


@dataclass(frozen=True)
class ExportedPolicy:
    """A policy with everything between a row of raw features and its observation."""

    policy: MlpPolicy
    features: Sequence[str]
    """Observed columns in order."""
    account_fields: Sequence[str]
    """Columns of the account in order: position, unrealised return, bars in trade, drawdown."""
    account_units: Sequence[float]
    """What each account field is divided by."""
    window: int
    """Rows that make one decision."""
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    bound: float
    """Observations are clipped at plus and minus this."""
    positions: Sequence[float]
    """Target position of each action."""

    @staticmethod
    def load(specification: Path, weights: Path) -> "ExportedPolicy":
        """Read spec.json and policy.npz."""
        spec: Specification = json.loads(specification.read_text(encoding="utf-8"))
        with np.load(weights, allow_pickle=False) as stored:
            layers = [(stored[f"weights_{i}"], stored[f"bias_{i}"]) for i in range(len(stored.files) // 2)]
        return build(spec, layers)

    def observations(self, rows: pd.DataFrame) -> Floats:
        """Rows of raw numbers, `window` for each decision, as observations x fields.

        Raises ValueError where the rows do not divide into windows or a number is not finite.
        """
        if len(rows) == 0 or len(rows) % self.window:
            raise ValueError(f"expected {self.window} rows for each decision, got {len(rows)} rows")
        names = [*self.features, *self.account_fields]
        numbers = rows[names].to_numpy(dtype=np.float64)
        bad = np.argwhere(~np.isfinite(numbers))
        if bad.size:
            row, column = bad[0]
            raise ValueError(f"{names[column]}: expected a finite number, row {row} has {numbers[row, column]}")
        # float32 first: training saw the features so.
        raw = numbers[:, : len(self.features)].astype(np.float32).astype(np.float64)
        seen = ((raw - self.mean) / self.deviation).reshape(len(rows) // self.window, -1)
        account = numbers[self.window - 1 :: self.window, len(self.features) :] / np.asarray(self.account_units)
        whole: Floats = np.clip(np.hstack([seen, account]), -self.bound, self.bound).astype(np.float32)
        return whole

    def decide(self, rows: pd.DataFrame) -> pd.DataFrame:
        """For each window of rows, oldest first: `target_position` and `confidence`, the action's probability.

        The account's fields are taken from a window's last row.
        """
        logits = self.policy.logits(self.observations(rows)).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        actions = logits.argmax(axis=1)
        return pd.DataFrame(
            {
                "target_position": np.asarray(self.positions, dtype=np.float64)[actions],
                "confidence": (odds / odds.sum(axis=1, keepdims=True))[np.arange(len(actions)), actions],
            }
        )


def build(spec: Specification, layers: Sequence[tuple[Floats, Floats]]) -> ExportedPolicy:
    """The policy that a specification describes."""
    columns, account = spec["normalisation"], spec["account_fields"]
    deviation = np.array([column["deviation"] for column in columns], dtype=np.float64)
    return ExportedPolicy(
        policy=MlpPolicy(layers=layers, activation=spec["activation"]),
        features=[column["column"] for column in columns],
        account_fields=[column["column"] for column in account],
        account_units=[column["unit"] for column in account],
        window=spec["window"],
        mean=np.array([column["mean"] for column in columns], dtype=np.float64),
        deviation=np.where(deviation == 0, 1.0, deviation),
        bound=spec["observation_bound"],
        positions=spec["positions"],
    )
