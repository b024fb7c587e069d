"""The command `inat-ft demo`, and the small pretrained network that it trains."""
