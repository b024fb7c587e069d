"""Averages of weights: the option `--average` of `inat-ft train`."""
