"""What the bytes of trained weights depend on besides data, request and seed."""

import os
import platform
from importlib.metadata import version

import torch

from training_fsm.domain.facts import Fingerprint
from training_fsm.domain.hyperparameters import AgentSettings

_BLAS_SETTINGS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def fingerprint(agent: AgentSettings) -> Fingerprint:
    """The fingerprint of this process for an agent's settings."""
    return Fingerprint(
        python=platform.python_version(),
        torch=version("torch"),
        numpy=version("numpy"),
        stable_baselines3=version("stable-baselines3"),
        gymnasium=version("gymnasium"),
        training_fsm=version("training-fsm"),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        blas=_blas(),
        torch_threads=agent.torch_threads,
        device=_device(agent.device),
        platform=f"{platform.system()} {platform.machine()}",
    )


def _blas() -> str:
    """Math libraries of torch as it was built, and the environment variables that choose their code paths."""
    built = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    libraries = [line for line in built if line.startswith(("Intel(R)", "OpenBLAS", "LAPACK"))]
    settings = [f"{name}={os.environ[name]}" for name in _BLAS_SETTINGS if name in os.environ]
    return "; ".join([*libraries, *settings]) or "unknown"


def _device(device: str) -> str:
    """The device's name; for CUDA also the card's, its kernels differ between cards."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return f"{device} {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return device
