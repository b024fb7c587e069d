"""A backbone in a package of its own: any module that ends with a Linear."""

from inat_ft.models import Backbone


class Little(Backbone):
    """Four small convolutions, trained from scratch."""

    width: int = 16
    """Filters of the first convolution."""

    def build(self, num_classes, image_size, dropout):
        from torch import nn

        layers, channels = [], 3
        for number in range(4):
            filters = self.width * 2**number
            layers += [nn.Conv2d(channels, filters, 3, stride=2, padding=1), nn.ReLU()]
            channels = filters
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
