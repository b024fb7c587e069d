"""Comparison of images with their manifest: `inat-ft split --check`."""
