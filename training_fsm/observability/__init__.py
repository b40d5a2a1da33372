"""Health and metrics of a role, over HTTP."""
