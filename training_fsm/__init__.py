"""Event-sourced training runs for deep-RL trading agents."""
