"""The commands `inat-ft record wandb` and `inat-ft record huggingface`."""
