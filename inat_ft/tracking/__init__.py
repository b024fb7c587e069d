"""Who listens to a run while it trains."""
