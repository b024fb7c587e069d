"""The learning-rate range test of `inat-ft train --find-lr`."""
