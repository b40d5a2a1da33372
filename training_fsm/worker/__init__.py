"""The supervisor of a training child, and the child."""
