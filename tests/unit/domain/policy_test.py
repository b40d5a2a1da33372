"""How long to wait."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from training_fsm.domain.policy import Policy

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@given(
    first_s=st.floats(0.001, 100),
    max_s=st.floats(0.001, 1000),
    failures=st.integers(1, 10_000),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_backoff_stays_within_half_and_whole_of_the_doubled_delay(
    first_s: float, max_s: float, failures: int, jitter: float
) -> None:
    """Never above the greatest delay, however many failures, and never zero."""
    policy = Policy(backoff_first_s=first_s, backoff_max_s=max_s)
    delay_s = (policy.retry_at(NOON, failures, jitter) - NOON).total_seconds()
    whole_s = min(max_s, first_s * 2 ** min(failures - 1, 30))
    assert whole_s / 2 - 1e-6 <= delay_s <= whole_s + 1e-6


def test_backoff_doubles_up_to_its_greatest() -> None:
    """With jitter 0 the delays are halves of 1, 2, 4 … seconds."""
    policy = Policy(backoff_first_s=1, backoff_max_s=6)
    delays_s = [(policy.retry_at(NOON, failures, 0) - NOON).total_seconds() for failures in range(1, 6)]
    assert delays_s == [0.5, 1, 2, 3, 3]
