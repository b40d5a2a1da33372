"""Timeframes as the family of services names them."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator

from training_fsm.domain.model import Model


class Timeframe(StrEnum):
    """A bar length of the family; `1M` is a month. Listed by length; compare `minutes`."""

    TICK = "tick"
    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H4 = "4h"
    D1 = "1d"
    W1 = "1w"
    MONTH1 = "1M"

    @property
    def minutes(self) -> int:
        """Nominal length in minutes; a month counts 30 days, a tick 0."""
        return _MINUTES[self]


_MINUTES = {
    Timeframe.TICK: 0,
    Timeframe.M1: 1,
    Timeframe.M5: 5,
    Timeframe.M15: 15,
    Timeframe.M30: 30,
    Timeframe.H1: 60,
    Timeframe.H4: 240,
    Timeframe.D1: 1440,
    Timeframe.W1: 10080,
    Timeframe.MONTH1: 43200,
}


def _in_utc(value: datetime) -> datetime:
    """Without a zone a time is UTC, as everywhere in the family."""
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("expected a time of the years 1 to 9999 in UTC") from error


UtcTime = Annotated[datetime, AfterValidator(_in_utc)]


class TimeRange(Model):
    """A half-open range [start, end) of bar openings, UTC."""

    start: UtcTime
    end: UtcTime

    def model_post_init(self, _context: object, /) -> None:
        """Refuse an empty range."""
        if self.end <= self.start:
            raise ValueError(f"end must be after start, got {self.start.isoformat()} to {self.end.isoformat()}")
