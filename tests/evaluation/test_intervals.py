import pytest
from scipy.stats import binomtest

from nemo_sdg.evaluation.intervals import wilson


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 23), (224, 400), (1, 10_000)])
def test_scipy_agrees(right, n):
    found = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((found.low, found.high), abs=1e-12)


def test_halves_lie_between_their_neighbours_and_nothing_has_no_interval():
    assert wilson(3, 10)[0] < wilson(3.5, 10)[0] < wilson(4, 10)[0]
    assert wilson(0, 0) == (None, None)
    assert wilson(50, 50)[1] == 1.0 and wilson(50, 50)[0] < 0.95 and wilson(0, 50)[0] == 0.0
