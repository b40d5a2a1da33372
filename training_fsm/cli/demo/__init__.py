"""The demo: a run from a message on Kafka to a registered model, over the death of its worker."""
