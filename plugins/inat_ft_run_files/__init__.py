"""The tracker `files`: curves, the confusion matrix of the validation images, and a model card in the run's folder."""
