"""Read a model version back from MLflow and let it predict, as the inference service does: without this package.

Started as `python -I load_model.py TRACKING_URI MODEL ALIAS`; prints one JSON object.
"""

import json
import os
import sys


def main() -> None:
    """Look the version up by its alias, load it, predict on its own example."""
    tracking_uri, name, alias = sys.argv[1:4]
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    for module in ("training_fsm", "torch", "stable_baselines3"):
        sys.modules[module] = None  # type: ignore[assignment]  # whoever imports it from here on fails
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    version = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    model = mlflow.pyfunc.load_model(f"models:/{name}@{alias}")
    example = model.input_example
    decisions = model.predict(example)
    print(
        json.dumps(
            {
                "name": version.name,
                "version": int(version.version),
                "aliases": sorted(version.aliases),
                "tags": dict(sorted(version.tags.items())),
                "inputs": model.metadata.signature.inputs.input_names(),
                "prediction": decisions.to_dict(orient="records"),
            }
        )
    )


if __name__ == "__main__":
    main()
