"""Answers from frozen features: `inat-ft audit`, `inat-ft learning-curve` and `inat-ft suggest`."""
