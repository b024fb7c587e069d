"""Extrapolation of a learning curve by a power law: error = scale * size**-exponent + floor.

The form is that of Hestness et al. 2017 (arXiv 1712.00409). A single fitted curve often misses (Mahmood et al. 2022,
arXiv 2207.01725), because exponent and floor are hardly identified. All curves that agree with the measurements are therefore
weighted by their likelihood, and the interval is that of their predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inat_ft_insights.features import Floats

_EXPONENTS = np.geomspace(0.02, 2.0, 60)
_NUM_FLOORS = 60
_NUM_SAMPLES = 4000
_MISFIT = 0.03
"""Relative error of a power law itself, as a standard deviation."""


@dataclass(frozen=True)
class Estimate:
    """A median with its 95% interval."""

    value: float
    low: float
    high: float

    def at_least(self, least: float) -> Estimate:
        """Return the estimate with no value below another one."""
        return Estimate(*(max(each, least) for each in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class PowerLaw:
    """Samples of the curves that agree with the measurements, `[K]` each.

    size: the largest measured one, at which the error above the floor is `scale`; noise: standard deviation of the accuracy
    over training sets of that size.
    """

    size: float
    scale: Floats
    exponent: Floats
    floor: Floats
    noise: float

    def errors(self, size: float) -> Floats:
        """Return the error of each curve at a size."""
        found: Floats = self.scale * (size / self.size) ** -self.exponent + self.floor
        return found

    def accuracy(self, size: float, seed: int = 0) -> Estimate:
        """Return the accuracy after training on one set of that size."""
        noise = np.random.default_rng(seed).normal(0, self.noise, len(self.scale))
        return _quantiles(np.clip(1 - self.errors(size) - noise, 0, 1))

    def size_for(self, accuracy: float) -> Estimate:
        """Return the size, at least 1, at which the mean accuracy is reached; infinite if the curve stays below it."""
        above = 1 - accuracy - self.floor
        with np.errstate(divide="ignore", over="ignore"):
            needed = self.size * (np.maximum(above, 0) / self.scale) ** (-1 / self.exponent)
        return _quantiles(np.maximum(needed, 1.0))


def fit_power_law(sizes: Floats, errors: Floats, covariance: Floats, noise: float, seed: int = 0) -> PowerLaw:
    """Fit a power law to mean errors `[S]` at sizes `[S]`, ascending, with their covariance `[S, S]`.

    The exponent is uniform on a logarithmic scale and the floor uniform from 0 to the last error before the measurements. If
    even the best curve fits worse than the covariance allows, the covariance is enlarged accordingly.
    """
    relative = sizes / sizes[-1]
    covariance = covariance + np.diag((_MISFIT * errors) ** 2)
    top = errors[-1] + 2 * np.sqrt(covariance[-1, -1])
    exponent, floor = (
        grid.ravel() for grid in np.meshgrid(_EXPONENTS, np.linspace(0, top, _NUM_FLOORS), indexing="ij")
    )
    precision = np.linalg.inv(covariance)
    basis, target = relative ** -exponent[:, None], errors - floor[:, None]
    weighted = basis @ precision
    inner = (weighted * basis).sum(1)
    scale = np.maximum((weighted * target).sum(1) / inner, 0)
    residual = target - scale[:, None] * basis
    misfit = ((residual @ precision) * residual).sum(1)
    inflation = max(1.0, float(misfit.min()) / max(len(sizes) - 3, 1))
    weights = np.exp(-(misfit - misfit.min()) / (2 * inflation)) / np.sqrt(inner)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(weights), _NUM_SAMPLES, p=weights / weights.sum())
    spread = rng.normal(0, np.sqrt(inflation / inner[chosen]))
    return PowerLaw(float(sizes[-1]), np.maximum(scale[chosen] + spread, 1e-9), exponent[chosen], floor[chosen], noise)


def _quantiles(values: Floats) -> Estimate:
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975), method="lower")
    return Estimate(float(middle), float(low), float(high))
