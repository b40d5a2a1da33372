"""The family's surface: environments, splits, agents, checkpoints."""
