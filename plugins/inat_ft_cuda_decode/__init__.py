"""Decode JPEG files on a CUDA GPU: `train --decode cuda`."""
