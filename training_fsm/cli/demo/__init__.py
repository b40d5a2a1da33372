"""The demo: from a message on Kafka to a registered model, over the death of its worker, and on to its child."""
