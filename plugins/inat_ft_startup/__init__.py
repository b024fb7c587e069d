"""What a command does first: it defers imports, and keeps freed memory."""
