"""Zeros of functions, without the import of scipy.optimize, which takes half a second."""

from __future__ import annotations

from collections.abc import Callable

_EPS = 4.5e-16
_MOST = 200


def find_root(function: Callable[[float], float], low: float, high: float, xtol: float) -> float:
    """Return a zero of a continuous function that has different signs at `low` and `high`.

    Chandrupatla's method (1997, Advances in Engineering Software 28:145): inverse quadratic interpolation where it is safe,
    and bisection elsewhere.
    """
    a, b, part = low, high, 0.5
    at_a, at_b = float(function(a)), float(function(b))
    if at_a == 0 or at_b == 0:
        return b if at_a else a
    for _ in range(_MOST):
        x = a + part * (b - a)
        at_x = float(function(x))
        if (at_x > 0) == (at_a > 0):
            c, at_c = a, at_a
        else:
            c, at_c, b, at_b = b, at_b, a, at_a
        a, at_a = x, at_x
        best, value = (a, at_a) if abs(at_a) < abs(at_b) else (b, at_b)
        tolerance = (2 * _EPS * abs(best) + xtol) / abs(b - a) if b != a else 1.0
        if value == 0 or tolerance > 0.5:
            return best
        place, ratio = (a - b) / (c - b), (at_a - at_b) / (at_c - at_b)
        part = 0.5
        if ratio**2 < place and (1 - ratio) ** 2 < 1 - place:
            part = at_a / (at_b - at_a) * at_c / (at_b - at_c)
            part += (c - a) / (b - a) * at_a / (at_c - at_a) * at_b / (at_c - at_b)
        part = min(1 - tolerance, max(tolerance, part))
    return best
