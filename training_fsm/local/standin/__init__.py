"""Stand-ins for the family's ingest and preprocess: real wire, real prices, a real Feast repository."""
