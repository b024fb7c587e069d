"""Fine-tune a pretrained image classifier, and say honestly which way is best and by how much."""

__version__ = "0.1.0"
