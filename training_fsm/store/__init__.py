"""Postgres: the event log, the inbox, leases and views."""
