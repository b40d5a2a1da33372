"""The exported model as MLflow loads it: this file, exported_policy.py, policy.npz and spec.json; no pickle."""

import runpy
from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class TargetPositionModel(PythonModel):
    """Rows of raw features and the account in, `target_position` and `confidence` out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the policy; its code runs under no module name, so that two versions can live in one process."""
        artifacts = {name: Path(path) for name, path in context.artifacts.items()}
        code = runpy.run_path(str(artifacts["code"]))
        self._policy = code["ExportedPolicy"].load(artifacts["specification"], artifacts["weights"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, object] | None = None
    ) -> pd.DataFrame:
        """One row for each `window` rows of the input, oldest first."""
        decisions: pd.DataFrame = self._policy.decide(model_input)
        return decisions


set_model(TargetPositionModel())
