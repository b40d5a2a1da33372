"""The outside: ingest, Feast, MLflow and its artifact store."""
