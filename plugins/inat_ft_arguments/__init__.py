"""Checks of the arguments of the Python API."""
