"""sha256 of files and of folders."""

import hashlib
from pathlib import Path

ADDED_BY_MLFLOW = frozenset({"registered_model_meta"})
"""Files that MLflow writes into a folder that it hands out."""


def file_digest(path: Path) -> str:
    """sha256 of the file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the files' relative names in sorted order, each with the sha256 of its bytes, hexadecimal.

    Leaves out what MLflow adds to a downloaded model, and Python's caches.
    """
    total = hashlib.sha256()
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ADDED_BY_MLFLOW and "__pycache__" not in path.parts
    }
    for name in sorted(files):
        total.update(f"{len(name.encode())}:{name}:{file_digest(files[name])}\n".encode())
    return total.hexdigest()
