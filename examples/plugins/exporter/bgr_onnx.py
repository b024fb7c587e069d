"""An exporter in a package of its own: ONNX for images as OpenCV reads them, with the channels in reverse order."""

from inat_ft_exporters.onnx import Onnx
from torch import nn


class FromBgr(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.flip(3))


class BgrOnnx(Onnx):
    """Write ONNX for BGR images."""

    def export(self, network, images, metadata, file):
        super().export(FromBgr(network), images, metadata, file)

    def predict(self, file, images):
        return super().predict(file, images[..., ::-1].copy())
