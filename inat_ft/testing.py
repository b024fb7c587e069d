"""Conformance checks for plugin authors, one for each group, and small networks and images to test with."""

from inat_ft_testing import *  # noqa: F403 - the names in its `__all__`
