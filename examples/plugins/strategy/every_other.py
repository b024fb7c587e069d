"""A strategy in a package of its own. It trains every other stage."""

from inat_ft.strategies import Group, Strategy


class EveryOther(Strategy):
    """Train the head and the weights of every other stage."""

    alpha: float = 0.1
    """Learning rate of the stages, as a multiple of the head's."""

    def groups(self, net, epoch):
        stages = list(net.stages.values())[1::2]
        # Without normalization: trainable BatchNorm adapts to the new images, that of the frozen stages does not.
        weights = [weight for stage in stages for weight in stage.parameters() if weight.ndim > 1]
        return [Group(net.head.parameters()), Group(weights, self.alpha)]
