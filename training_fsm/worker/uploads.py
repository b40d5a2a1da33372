"""Checkpoints and curves on their way into the artifact store: one after the other, beside the training."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.facts import Artifact
from training_fsm.ports import Artifacts, MetricPoint, Tracking
from training_fsm.worker import protocol as p
from training_fsm.worker.lease_keeper import SideWorkFailed, Sink


@dataclass(frozen=True, slots=True)
class CheckpointStored:
    """A checkpoint and the curves since the one before are in the artifact store."""

    step: int
    artifact: Artifact
    curves: Artifact
    points: tuple[p.CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class UploadsDone:
    """All that was asked for before is stored, or has told that it failed."""


def metric_points(points: Sequence[p.CurvePoint]) -> list[MetricPoint]:
    """Curve points as the tracking takes them, with their own times."""
    return [MetricPoint(point.name, point.value, point.step, point.timestamp_ms) for point in points]


class Uploads:
    """One thread that stores, in order, and tells what it stored. An outage shorter than the patience only delays."""

    def __init__(
        self, artifacts: Artifacts, tracking: Tracking, tracking_run_id: str, news: Sink, patience_s: float
    ) -> None:
        self._artifacts = artifacts
        self._tracking = tracking
        self._tracking_run_id = tracking_run_id
        self._news = news
        self._patience_s = patience_s
        self._given_up = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload")

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def checkpoint(self, path: Path, step: int, folder: str, points: tuple[p.CurvePoint, ...]) -> None:
        """Store a checkpoint file and the curves since the one before; the file is removed afterwards."""

        def store() -> None:
            curves_file = path.with_suffix(".curves.json")
            curves_file.write_text(p.Curves(points=points).model_dump_json(), encoding="utf-8")
            artifact = self._artifacts.put(self._tracking_run_id, folder, path)
            curves = self._artifacts.put(self._tracking_run_id, folder, curves_file)
            path.unlink()
            curves_file.unlink()
            self._news.put(CheckpointStored(step, artifact, curves, points))

        self._later(store)

    def metrics(self, points: Sequence[p.CurvePoint]) -> None:
        """Log points; those that are there already, with the same time, are not doubled."""
        metrics = metric_points(points)
        if metrics:
            self._later(lambda: self._tracking.log_metrics(self._tracking_run_id, metrics))

    def tell_when_done(self) -> None:
        """Tell UploadsDone when all that was asked for is done; what failed has told so before."""
        self._pool.submit(self._news.put, UploadsDone())

    def _later(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                for attempt in Retrying(
                    retry=retry_if_exception_type(OutsideUnavailable),
                    wait=wait_exponential(multiplier=0.5, max=15),
                    stop=stop_after_delay(self._patience_s) | stop_when_event_set(self._given_up),
                    sleep=sleep_using_event(self._given_up),
                    reraise=True,
                ):
                    with attempt:
                        work()
            except Exception as error:  # noqa: BLE001  (the main loop decides what a failed upload means)
                self._news.put(SideWorkFailed(error))

        self._pool.submit(guarded)
