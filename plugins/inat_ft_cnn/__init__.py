"""The backbone `cnn`."""
