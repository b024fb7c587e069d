"""The training engine: one loop under every strategy."""
