"""A strategy in a package of its own: every other stage learns, at `alpha` times the head's rate."""

from inat_ft.strategies import Group, Strategy


class EveryOther(Strategy):
    """Train the head and the weights of every other stage."""

    alpha: float = 0.1
    """Learning rate of the stages, as a multiple of the head's."""

    def groups(self, net, epoch):
        stages = list(net.stages.values())[1::2]
        # not the normalisation: it would follow the new images, and that of the frozen stages between would not
        weights = [weight for stage in stages for weight in stage.parameters() if weight.ndim > 1]
        return [Group(net.head.parameters()), Group(weights, self.alpha)]
