"""The conformance check of a backbone plugin."""

from __future__ import annotations

import torch
from torch import nn

from inat_ft.models.base import Backbone
from inat_ft.models.net import make_net

_CLASSES = 3


def check_backbone(backbone: Backbone, image_size: int = 64) -> None:
    """Check that a backbone builds a network that can be split into stages, fine-tuned and given its weights.

    image_size: height and width, in pixels, of images that the network accepts. Raises AssertionError, or PluginError when
    the network cannot be split into stages. Pretrained weights, if there are any, are loaded.
    """
    classifier = backbone.build(_CLASSES, image_size, dropout=0.1)
    assert isinstance(classifier, nn.Module), f"build() returned {classifier!r}, not a torch.nn.Module"
    names = set(classifier.state_dict())
    torch.manual_seed(0)
    net = make_net("backbone", classifier, _CLASSES, 0.1)
    assert len(net.stages) > 1, "the network has a single stage, so that a strategy cannot freeze a part of it"
    images = torch.randn(2, 3, image_size, image_size)
    net.eval()
    with torch.inference_mode():
        logits = net(images)
        assert logits.shape == (2, _CLASSES), f"the logits have the shape {tuple(logits.shape)}, not (2, {_CLASSES})"
        assert torch.allclose(net(images[:1]), logits[:1], atol=1e-4), "the logits of an image depend on the others"
    net.train()
    net(images).sum().backward()
    missing = [net.original_name(name) for name, weight in net.named_parameters() if weight.grad is None]
    assert not missing, f"no gradient for {', '.join(missing)}"
    if backbone.pretrained:
        weights = backbone.weights("imagenet")
        unknown = set(weights.load()) - names
        assert not unknown, f"the pretrained weights have keys that the network lacks: {', '.join(sorted(unknown)[:5])}"
