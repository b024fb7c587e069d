"""A strategy in a package of its own: every other stage learns, at `alpha` times the head's rate."""

from inat_ft.strategies import Group, Strategy


class EveryOther(Strategy):
    """Train the head and every other stage."""

    alpha: float = 0.1
    """Learning rate of the stages, as a multiple of the head's."""

    def groups(self, net, epoch):
        stages = list(net.stages.values())[1::2]
        return [Group(net.head.parameters()), *(Group(stage.parameters(), self.alpha) for stage in stages)]
