"""Caches on disk and in memory: packed images and the outputs of frozen layers."""
