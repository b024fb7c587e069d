"""Compute frozen layers with OpenVINO on a CPU, where it is installed and faster than torch."""
