"""Sweeps in PostgreSQL, for workers on several machines."""
