"""A whole family on one machine: servers from wheels and stand-ins for the neighbours."""
