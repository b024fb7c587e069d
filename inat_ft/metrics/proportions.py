"""Proportions with intervals that hold for few images: of all images, and of the images of one class."""

from __future__ import annotations

from inat_ft.records import MetricValue

_FEW = 20
"""Correct or wrong images below which an interval is exact: Wilson's covers 84 % only with one error or none."""


def wilson(hits: int, number: int, alpha: float = 0.05) -> MetricValue:
    """Return a proportion with its Wilson interval (Wilson 1927) of level 1 - alpha."""
    return _binomial(hits, number, alpha, "wilson")


def proportion(hits: int, number: int) -> MetricValue:
    """Return a proportion with its 95 % interval: Wilson's, or Clopper and Pearson's for few hits or few misses.

    Without an image it is 0 and has no interval.
    """
    if not number:
        return MetricValue(value=0.0)
    return _binomial(hits, number, 0.05, "exact" if min(hits, number - hits) < _FEW else "wilson")


def class_f1(hits: int, images: int) -> MetricValue:
    """Return the F1 of a class with `images` true plus predicted images.

    F1 is 2j / (1 + j) for the proportion j of hits among the images that are true or predicted, which gives its interval.
    """
    share = proportion(hits, images - hits)
    if share.low is None or share.high is None:
        return MetricValue(value=0.0)
    value, low, high = (2 * part / (1 + part) for part in (share.value, share.low, share.high))
    return MetricValue(value=value, low=low, high=high, method=share.method)


def _binomial(hits: int, number: int, alpha: float, method: str) -> MetricValue:
    from scipy.stats import binomtest

    found = binomtest(hits, number).proportion_ci(1 - alpha, method=method)
    return MetricValue(value=hits / number, low=float(found.low), high=float(found.high), method=method)
