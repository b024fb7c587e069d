"""Startup work of a command: it defers imports, keeps freed memory, and collects garbage less often."""
