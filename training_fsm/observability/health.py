"""What a role says of itself: live while its loops turn, ready while the services that it needs were reached."""

from collections.abc import Callable, Mapping

from training_fsm.domain.model import Model
from training_fsm.observability.cached_read import Reading
from training_fsm.observability.pulse import Pulses

REACHED_S_MAX = 30.0
"""A service that was last reached before that is away; a shorter outage makes nobody unready."""


class Check(Model):
    """One thing that was looked at."""

    ok: bool
    required: bool = True
    """Whether the whole is well only with it."""
    says: str


class Health(Model):
    """The answer to /healthz and /readyz."""

    role: str
    ok: bool
    checks: dict[str, Check]


Checks = Callable[[], Mapping[str, Check]]


def health(role: str, checks: Mapping[str, Check]) -> Health:
    """Well where every required check is."""
    return Health(role=role, ok=all(check.ok for check in checks.values() if check.required), checks=dict(checks))


def loop_checks(pulses: Pulses) -> dict[str, Check]:
    """One for each loop. They look at no other service: an outage elsewhere is no reason to start a role again."""
    most = pulses.silence_s_max
    return {
        name: Check(ok=silent <= most, says=f"turned {silent:.1f} s ago, {most:g} s allowed")
        for name, silent in pulses.silences_s().items()
    }


def reached_check(reading: Reading[object]) -> Check:
    """Whether a service was reached within a while."""
    if reading.error is None:
        return Check(ok=True, says="reached")
    if reading.age_s <= REACHED_S_MAX:
        return Check(ok=True, says=f"reached {reading.age_s:.0f} s ago, not now: {reading.error}")
    return Check(ok=False, says=reading.error)
