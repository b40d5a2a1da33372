"""MLflow made equal to the log, again and again: whoever died before he could is followed by one who can."""

import time

import structlog

from training_fsm.domain.errors import OutsideUnavailable
from training_fsm.domain.states import State
from training_fsm.worker.session import Outside

log = structlog.get_logger()

TRACKING_STATUS = {
    State.REGISTERED: "FINISHED",
    State.REJECTED: "FINISHED",
    State.FAILED: "FAILED",
    State.CANCELLED: "KILLED",
}
"""How the tracking run of a run that has ended must have ended."""


class Reconciler:
    """Moves aliases to the versions that the log names, and ends tracking runs whose runs have ended."""

    def __init__(self, outside: Outside, every_s: float) -> None:
        self._outside = outside
        self._every_s = every_s
        self._due_at = 0.0

    def run_if_due(self) -> None:
        """Compare, unless that was just done."""
        if time.monotonic() >= self._due_at:
            self.run()

    def run(self) -> None:
        """Compare and mend; one worker at a time does, and an outage only puts it off."""
        self._due_at = time.monotonic() + self._every_s
        try:
            with self._outside.log.aliases() as aliases:
                if not aliases:
                    return  # another worker is at it
                moved = self._outside.lifecycle.reconcile_aliases(aliases)
                if moved:
                    log.info("aliases moved", aliases=moved)
                self._end_tracking_runs()
        except OutsideUnavailable as error:
            log.warning("compared with mlflow later", service=error.service, error=error.words)

    def _end_tracking_runs(self) -> None:
        tracking = self._outside.tracking
        for tracking_run_id, run_id in tracking.open_runs():
            run = self._outside.log.load(run_id)
            if run is not None and run.ended:
                tracking.close_run(tracking_run_id, TRACKING_STATUS[run.state])
                log.info("tracking run ended", run_id=run_id, state=run.state.value)
