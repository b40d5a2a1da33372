"""The training child: does what its supervisor orders, one order after the other, and dies with it.

Its output goes to the supervisor's log file, never into the pipes.
"""

import ctypes
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.lineage import TrainingRecord
from training_fsm.domain.needed_ranges import needed_ranges, same_market
from training_fsm.domain.request import TrainingRequest
from training_fsm.settings import Settings
from training_fsm.worker import protocol as p
from training_fsm.worker.child_failure import failure_of

if TYPE_CHECKING:
    import pandas as pd

    from training_fsm.core.contest import Contender

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
NAME = "training-child"
"""What `ps` calls it."""
SHOW_TRACEBACK = signal.SIGUSR1
"""Has the child print where it is, also from within native code."""


class Replies:
    """The pipe to the supervisor; messages from several threads do not mix."""

    def __init__(self, pipe: "Connection[bytes, bytes]") -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, reply: p.Reply) -> None:
        """Send one reply; a supervisor that is gone ends this process."""
        with self._lock:
            self._pipe.send_bytes(reply.model_dump_json().encode())


class Observer:
    """Passes on what the training segment tells."""

    def __init__(self, replies: Replies, stop: threading.Event) -> None:
        self._replies = replies
        self._stop = stop

    def on_progress(self, step: int, total: int, steps_per_s: float, metrics: dict[str, float]) -> None:
        """Progress, as it is."""
        reward = metrics.get("reward")
        self._replies.send(p.Advanced(step=step, total=total, steps_per_s=steps_per_s, reward=reward))

    def on_rollout(self, points: Sequence[tuple[str, float, int]]) -> None:
        """Curve points, with the time: a repeat must carry the same one."""
        now_ms = time.time_ns() // 1_000_000
        self._replies.send(
            p.Curves(
                points=tuple(
                    p.CurvePoint(name=name, value=value, step=step, timestamp_ms=now_ms) for name, value, step in points
                )
            )
        )

    def on_checkpoint(self, path: Path, step: int, sha256: str) -> None:
        """A checkpoint is on disk."""
        self._replies.send(p.CheckpointWritten(path=path, step=step, sha256=sha256))

    def should_stop(self) -> bool:
        """Whether the supervisor wants a checkpoint and the end."""
        return self._stop.is_set()


class Child:
    """Carries out orders; what is slow was imported before."""

    def __init__(self, settings: Settings, replies: Replies, stop: threading.Event) -> None:
        from training_fsm.client.feast_client import FeastClient, FeastSettings
        from training_fsm.core.agent import pin_torch
        from training_fsm.domain.hyperparameters import AgentSettings

        self._replies = replies
        self._stop = stop
        feast = FeastSettings(
            repo_path=settings.feast_repo, registry=settings.feast_registry, project=settings.feast_project
        )
        self._features = FeastClient(feast)
        with suppress(OutsideUnavailable):  # a run that needs it will say so
            self._features.warm_up()
        pin_torch(AgentSettings())

    def carry_out(self, order: p.Order) -> p.Reply:
        """Do one order and return its last reply."""
        match order:
            case p.Inspect():
                return self._inspect(order)
            case p.LookUp():
                return self._look_up(order)
            case p.Freeze():
                return self._freeze(order)
            case p.Train():
                return self._train(order)
            case p.Evaluate():
                return self._evaluate(order)
            case p.Package():
                return self._package(order)
            case p.Stop():
                raise ValueError("stop is no order to be carried out")
            case _:
                assert_never(order)

    def _inspect(self, order: p.Inspect) -> p.Inspected:
        from training_fsm.core.sb3_zip import inspect

        found = inspect(order.path, order.sha256, order.trusted)
        return p.Inspected(steps=found.steps, inherited=found.inherited)

    def _look_up(self, order: p.LookUp) -> p.LookedUp:
        service, lacking = self._features.look_up(order.request, order.feature_config, order.ranges, order.known)
        return p.LookedUp(service=service, lacking=lacking)

    def _freeze(self, order: p.Freeze) -> p.Frozen:
        from training_fsm.core.frozen_data import freeze, load_frozen
        from training_fsm.core.parent_rows import check_drift, with_parent

        request, record = order.request, order.parent.record if order.parent is not None else None
        if record is None or order.parent_frame is None:
            path, data = freeze(self._features.read(request, order.feature_config), request, order.folder)
            return p.Frozen(path=path, data=data)
        found = self._features.read(request, order.feature_config, needed_ranges(request, record))
        rows, shared = with_parent(found, load_frozen(order.parent_frame, record.data), record, request)
        check_drift(shared, order.accept_drift)
        path, data = freeze(
            rows,
            request,
            order.folder,
            normalisation=record.data.normalisation,
            shared=shared,
            not_before=record.trained_until if same_market(request, record) else None,
        )
        return p.Frozen(path=path, data=data)

    def _train(self, order: p.Train) -> p.Trained:
        from training_fsm.core.fingerprint import fingerprint
        from training_fsm.core.frozen_data import load_frozen
        from training_fsm.core.training_segment import Ancestor, train_segment

        frame = load_frozen(order.frame, order.data)
        self._replies.send(p.SegmentBegun(fingerprint=fingerprint(order.request.agent)))
        observer = Observer(self._replies, self._stop)
        ancestor = None
        if order.parent is not None and order.inheritance is not None:
            ancestor = Ancestor(order.parent_checkpoint, order.parent, order.inheritance)
        result = train_segment(
            order.request,
            frame,
            order.data,
            order.folder,
            order.resume_from,
            observer,
            ancestor=ancestor,
            last_step=order.last_step,
        )
        return p.Trained(
            finished=result.finished, sha256=result.sha256, steps=result.steps, validation=result.validation
        )

    def _evaluate(self, order: p.Evaluate) -> p.Evaluated:
        from training_fsm.core.backtest import HeldOutBacktester
        from training_fsm.core.backtest_report import write_report
        from training_fsm.core.contest import HeldOutRing
        from training_fsm.core.frozen_data import load_frozen
        from training_fsm.service.backtesting_evaluation_service import BacktestingEvaluationService

        record, opponent = order.record, order.opponent
        frame = load_frozen(order.frame, record.data)
        challenger = _contender(record, order.checkpoint)
        champion = None if opponent is None else (opponent.model, _contender(opponent.record, opponent.checkpoint))
        backtester = HeldOutBacktester(challenger.policy, frame, record.data)
        ring = HeldOutRing(challenger, champion, order.stream_version, frame, self._feature_frame)
        judgement = BacktestingEvaluationService(backtester, ring).evaluate(record.request)
        assert backtester.result is not None, "an evaluation has backtested"
        report = write_report(order.folder, record.run_id, backtester.result, judgement)
        return p.Evaluated(judgement=judgement, report=report)

    def _feature_frame(self, request: TrainingRequest, feature_config: FeatureConfigVersionInfo) -> "pd.DataFrame":
        return self._features.read(request, feature_config).frame

    def _package(self, order: p.Package) -> p.Packaged:
        from training_fsm.core.checkpoint import read_policy
        from training_fsm.core.policy_export import mlp_policy, package_model

        record = order.record
        weights = read_policy(order.checkpoint, record.checkpoint.sha256)
        policy = mlp_policy(weights, record.request.agent.hyperparameters.activation_fn)
        return p.Packaged(folder=package_model(policy, record, order.created_at, order.folder))


def _contender(record: TrainingRecord, checkpoint: Path) -> "Contender":
    from training_fsm.core.checkpoint import read_policy
    from training_fsm.core.contest import Contender
    from training_fsm.core.policy_export import mlp_policy

    weights = read_policy(checkpoint, record.checkpoint.sha256)
    policy = mlp_policy(weights, record.request.agent.hyperparameters.activation_fn)
    return Contender(policy, record.request, record.feature_config, record.data, record.trained_until)


def _listen(pipe: "Connection[bytes, bytes]", orders: "queue.SimpleQueue[p.Order]", stop: threading.Event) -> None:
    while True:
        try:
            order = p.ORDERS.validate_json(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)  # the supervisor is gone: nobody waits for what we do
        if isinstance(order, p.Stop):
            stop.set()
            continue
        if isinstance(order, p.Train):
            stop.clear()  # what stopped the segment before is over
        orders.put(order)


def _settle_in(log: Path) -> None:
    """A name in `ps`, signals that are the supervisor's to handle, output into the log, death with the supervisor."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # Where it was when it crashed in native code, or, asked by its supervisor, where it hangs.
    faulthandler.enable(all_threads=False)
    faulthandler.register(SHOW_TRACEBACK, all_threads=False)
    if sys.platform == "linux":
        # The end of the orders' pipe is the net behind it.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_NAME, NAME.encode())


def serve(
    settings: Settings, orders_pipe: "Connection[bytes, bytes]", replies_pipe: "Connection[bytes, bytes]", log: Path
) -> None:
    """Serve orders until the supervisor ends."""
    _settle_in(log)
    replies, stop = Replies(replies_pipe), threading.Event()
    orders: queue.SimpleQueue[p.Order] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders_pipe, orders, stop), daemon=True).start()
    child = Child(settings, replies, stop)
    replies.send(p.Ready())
    while True:
        order = orders.get()
        try:
            reply = child.carry_out(order)
        except Exception as error:  # noqa: BLE001  (whatever it is, the supervisor writes it into the log)
            reply = failure_of(error, order)
            with suppress(OSError):  # the log may lie on the very disk that is full
                traceback.print_exc()
        replies.send(reply)
