-- Run once, at the server's first start: MLflow has a database of its own beside the log.
CREATE DATABASE mlflow;
