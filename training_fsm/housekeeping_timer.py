"""Housekeeping by the orchestrator: passes in processes of their own, since the orchestrator loads no MLflow."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog

from training_fsm.service.housekeeping_report import HousekeepingReport

log = structlog.get_logger()

LOOK_S = 1.0
WORDS_MAX = 2_000


class HousekeepingTimer:
    """Starts `training-fsm admin housekeeping` at its own start, and then again and again."""

    def __init__(self, every_h: float, home: Path) -> None:
        self._every_s = every_h * 3600
        words = ["--home", str(home), "admin", "housekeeping", "--json"]
        self._command = [sys.executable, "-m", "training_fsm", *words]

    def run(self, stop: threading.Event) -> None:
        """One pass after the other until told to stop; one that fails is told in the log, and the next one comes."""
        due = time.monotonic()
        while not stop.wait(LOOK_S):
            if time.monotonic() >= due:
                due = time.monotonic() + self._every_s
                self._one(stop)

    def _one(self, stop: threading.Event) -> None:
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        except OSError as error:  # no memory for a process, say: the orchestrator goes on, and the next pass may start
            log.error("housekeeping not started", error=str(error))
            return
        with process:
            words = threading.Thread(target=self._tell, args=(process,))
            words.start()
            while process.poll() is None:
                if stop.wait(LOOK_S):
                    process.terminate()  # whatever it has not recorded is done again by the next pass
                    break
            words.join()

    def _tell(self, process: "subprocess.Popen[str]") -> None:
        out, err = process.communicate()
        told = log.info if process.returncode == 0 else log.warning
        try:
            report = HousekeepingReport.model_validate_json(out)
        except ValueError:
            told("housekeeping", exit_code=process.returncode, words=err.strip()[-WORDS_MAX:])
        else:
            told(
                "housekeeping",
                released=sum(one.files for one in report.released),
                deleted=report.deleted.files,
                left=report.left,
                commands_pruned=report.commands_pruned,
                remarks=report.remarks,
            )
