"""The corrected resampled t-test: its formula, its level, and the agreement of p and interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inat_ft_folds.resampled import resampled
from scipy.stats import t, ttest_1samp

values = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6)


@given(values)
def test_without_a_correction_it_is_the_usual_t_test(drawn) -> None:
    assert resampled(drawn, 0.0).p == pytest.approx(ttest_1samp(drawn, 0).pvalue, rel=1e-6, abs=1e-12)


def test_five_folds_have_the_p_of_the_published_formula() -> None:
    drawn = [0.02, 0.05, 0.01, 0.04, 0.03]
    statistic = 0.03 / np.sqrt((1 / 5 + 1 / 4) * np.var(drawn, ddof=1))
    assert resampled(drawn, 1 / 4).p == pytest.approx(2 * t.sf(statistic, 4))


@given(values, st.floats(0, 1))
def test_the_interval_excludes_zero_exactly_when_p_is_small(drawn, ratio: float) -> None:
    found = resampled(drawn, ratio)
    low, high = found.interval(0.05)
    assert found.p is not None
    if abs(found.p - 0.05) > 1e-9:
        assert (found.p < 0.05) == (low > 0 or high < 0)


def test_the_level_is_exact_if_the_correlation_is_the_share_of_held_out_images() -> None:
    rng, folds = np.random.default_rng(0), 5
    shared, own = rng.normal(0, np.sqrt(1 / folds), (2000, 1)), rng.normal(0, np.sqrt(1 - 1 / folds), (2000, folds))
    drawn = (shared + own).tolist()
    corrected, usual = (np.mean([resampled(row, ratio).p < 0.05 for row in drawn]) for ratio in (1 / (folds - 1), 0.0))
    assert 0.038 < corrected < 0.062
    assert usual > 0.11


def test_folds_that_do_not_differ_have_no_test() -> None:
    found = resampled([0.25, 0.25, 0.25], 0.5)
    assert found.p is None and not found.within(0.5)


def test_equivalence_is_tested_on_both_sides() -> None:
    narrow, wide = resampled([0.001, -0.001, 0.0], 0.5), resampled([0.1, -0.1, 0.0], 0.5)
    assert narrow.within(0.01) and not wide.within(0.01) and not narrow.within(0.0005)
