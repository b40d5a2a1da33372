"""Times and ranges as users write them."""

import pytest
from pydantic import ValidationError

from training_fsm.domain.timeframe import TimeRange


@pytest.mark.parametrize("start", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_time_that_utc_cannot_say_is_told(start: str) -> None:
    """The sender hears of it, as of any other field that is wrong."""
    with pytest.raises(ValidationError, match="years 1 to 9999"):
        TimeRange.model_validate_json(f'{{"start": "{start}", "end": "{start}"}}')
