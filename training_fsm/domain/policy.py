"""How long to wait and how often to try: numbers that operators set."""

from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field

from training_fsm.domain.model import Model


class Policy(Model):
    """Deadlines and retries."""

    features_deadline_s: float = Field(default=3600, gt=0)
    """From asking ingest to preprocess's message."""
    refill: Literal["never", "backfill"] = "never"
    """Whether features that are lacking after all are asked for once more."""
    attempts_max: int = Field(default=8, gt=0)
    """Failures in a row, without progress, before a run fails."""
    backoff_first_s: float = Field(default=2, gt=0)
    backoff_max_s: float = Field(default=60, gt=0)

    def retry_at(self, now: datetime, failures: int, jitter: float) -> datetime:
        """Exponential backoff with jitter in [0, 1): between half and the whole of the doubled delay."""
        delay_s = min(self.backoff_max_s, self.backoff_first_s * 2.0 ** min(failures - 1, 30))
        return now + timedelta(seconds=delay_s * (0.5 + jitter / 2))
