"""What workers of one machine do with the spool that they share."""

import shutil
from pathlib import Path

from training_fsm.worker.supervisor import sweep_spool


def test_spool_that_another_worker_sweeps_at_the_same_time_is_no_error(tmp_path: Path) -> None:
    """Ended runs' folders go, also where one or a part of it is gone already; others and files stay."""
    for name in ("whole", "half", "gone", "going-on"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "1.zip").touch()
    (tmp_path / "child-1.log").touch()

    def meanwhile(run_id: str) -> bool:
        if run_id == "gone":
            shutil.rmtree(tmp_path / run_id)
        if run_id == "half":
            shutil.rmtree(tmp_path / run_id / "checkpoints")
        return run_id != "going-on"

    sweep_spool(tmp_path, meanwhile)
    assert {path.name for path in tmp_path.iterdir()} == {"going-on", "child-1.log"}
    assert (tmp_path / "going-on" / "checkpoints" / "1.zip").exists()
    sweep_spool(tmp_path / "not-there", meanwhile)
