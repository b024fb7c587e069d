"""Compute frozen layers with OpenVINO or ONNX Runtime on a CPU, where they are installed and faster than torch."""
