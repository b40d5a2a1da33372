"""The database's history, one file a step; literals only, nothing of the package is imported."""
