"""The export formats `onnx`, `torch-export`, `openvino`, `safetensors`, `timm` and `hub-folder`."""
