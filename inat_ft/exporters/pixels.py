"""The network that exporters write: from pixels to probabilities."""

import torch
from torch import Tensor, nn

from inat_ft.data.batches import ImageInput
from inat_ft.evaluation.predict import LoadedModel


class PixelClassifier(nn.Module):
    """A trained network with its normalization: from images uint8 `[N, S, S, 3]` to probabilities float32 `[N, C]`."""

    def __init__(self, trained: LoadedModel) -> None:
        super().__init__()
        self.net = trained.net
        self.prepare = ImageInput(trained.preprocess.mean, trained.preprocess.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.prepare(images, torch.empty(0))).softmax(1)  # type: ignore[no-any-return]
