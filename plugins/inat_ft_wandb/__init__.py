"""Weights & Biases: the tracker `wandb` and the sweep backend `wandb`."""
