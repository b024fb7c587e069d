"""The trackers `tensorboard`, `mlflow` and `trackio`."""
