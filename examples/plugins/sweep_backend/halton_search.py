"""A sweep backend in a package of its own: quasi-random search, which covers a space more evenly than random search."""

from inat_ft import SweepBackend


class Halton(SweepBackend):
    """Try the points of a finite space in the order of a Halton sequence."""

    def ask(self, spec, trials, seed):
        from scipy.stats import qmc

        points, tried = spec.points(), [trial.params for trial in trials]
        for (position,) in qmc.Halton(d=1, seed=seed).random(20 * len(points)):
            if (point := points[int(position * len(points))]) not in tried:
                return point
        return None
