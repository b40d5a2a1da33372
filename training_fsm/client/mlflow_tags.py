"""Tags that we set in MLflow, and how to search for them."""

RUN_TAG = "training_fsm.run_id"
"""The training run, on its tracking run and on the version that came of it."""
KEY_TAG = "training_fsm.key"
"""The idempotency key of a registration."""
DIGEST_TAG = "training_fsm.digest"
"""sha256 of a version's folder."""
AGENT_TAG = "training_fsm.agent"
"""The algorithm of a version."""

TAG_CHARS = 5000
"""Longest value that MLflow takes."""


def equals(tag: str, value: str) -> str:
    """A filter on a tag. Raises ValueError where the value has a quote."""
    return f"tags.`{tag}` = {quoted(value)}"


def quoted(value: str) -> str:
    """A string in MLflow's filter language, which has no escape for a quote. Raises ValueError where there is one."""
    if "'" in value:
        raise ValueError(f"expected a name or key without ', got {value!r}")
    return f"'{value}'"
