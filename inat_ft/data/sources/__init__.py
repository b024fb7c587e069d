"""Data sources: where images and their classes come from."""
