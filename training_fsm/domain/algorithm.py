"""The algorithms whose models can be continued."""

from typing import get_args

from training_fsm.domain.errors import ParentUnfit
from training_fsm.domain.facts import Failure
from training_fsm.domain.hyperparameters import AgentSettings

ALGORITHMS: tuple[str, ...] = get_args(AgentSettings.model_fields["name"].annotation)


def require_known(agent: str) -> None:
    """Raises ParentUnfit where a parent was trained by an algorithm that is none of ours."""
    if agent not in ALGORITHMS:
        words = f"another algorithm: the parent's agent is {agent}, expected {' or '.join(ALGORITHMS)}"
        raise ParentUnfit(Failure(kind="parent_unfit", words=words, field="agent.name"))
