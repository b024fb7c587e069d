"""Grad-CAM maps of `inat-ft eval --cam`."""
