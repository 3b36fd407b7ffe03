"""How far scores have moved: known shifts, scipy's distance, each limit by itself."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import ks_2samp

from nemo_sdg.config import MISSING, Evaluate
from nemo_sdg.evaluation.drift import MOST, drift, kept

LIMITS = Evaluate()


def rows(values, name: str = "helpfulness") -> list[dict[str, float]]:
    return [{name: float(value)} for value in values]


def moved(first, now, limits: Evaluate = LIMITS) -> dict:
    return drift(kept(rows(first)), kept(rows(now)), limits)["helpfulness"]


def test_the_same_scores_have_not_moved():
    scores = np.random.default_rng(0).normal(size=300)
    assert moved(scores, scores[::-1]) == {"shift": 0.0, "ks": 0.0, "outside": 0.0, "drifted": False}


def test_a_shift_is_told_in_deviations_of_the_first():
    first = [0.0, 4.0] * 50  # mean 2, deviation 2
    told = moved(first, [value + 0.5 for value in first])
    assert told["shift"] == pytest.approx(0.25) and told["ks"] == pytest.approx(0.5) and told["outside"] == 0.5
    told = moved(first, [value - 3 for value in first])
    assert told["shift"] == pytest.approx(-1.5) and told["outside"] == 0.5 and told["drifted"]


def test_scipy_finds_the_same_distance():
    chance = np.random.default_rng(1)
    a, b = chance.normal(size=200).round(1), chance.normal(0.4, 2, size=333).round(1)
    assert moved(a, b)["ks"] == pytest.approx(ks_2samp(a, b).statistic, abs=1e-12)


def test_of_many_scores_evenly_spaced_ones_are_kept():
    chance = np.random.default_rng(2)
    a, b = chance.normal(size=20_000), chance.normal(0.3, 1, size=20_000)
    few = kept(rows(a))["helpfulness"]
    assert len(few["scores"]) == MOST and few["n"] == 20_000
    assert few["scores"][0] == pytest.approx(a.min()) and few["scores"][-1] == pytest.approx(a.max())
    assert moved(a, b)["ks"] == pytest.approx(ks_2samp(a, b).statistic, abs=2e-3)


@pytest.mark.parametrize(
    ("first", "now", "limit"),
    [  # by the mean alone; by the shape alone; by the range alone
        ([0, 1, 2, 3, 4] * 20, [1, 2, 2, 3, 4] * 20, {"drift_shift": 0.2}),
        ([0, 1, 2, 3, 4] * 20, [0, 0, 2, 4, 4] * 20, {"drift_ks": 0.15}),
        ([0, 1, 2, 3, 4] * 20, [0, 1, 2, 3, 4] * 19 + [0, 1, 2, 3, 4.5], {"drift_outside": 0.005}),
    ],
)
def test_each_limit_by_itself_is_enough(first, now, limit):
    wide = Evaluate(drift_shift=9, drift_ks=1, drift_outside=1)
    assert not moved(first, now, wide)["drifted"]
    assert moved(first, now, dataclasses.replace(wide, **limit))["drifted"]


def test_a_limit_itself_is_no_drift():
    first = [0.0, 2.0] * 50
    wide = Evaluate(drift_shift=1.0, drift_ks=1, drift_outside=1)
    assert not moved(first, [value + 1 for value in first], wide)["drifted"]
    assert moved(first, [value + 1.01 for value in first], wide)["drifted"]
    assert moved(first, [value - 1.01 for value in first], wide)["drifted"]


def test_scores_that_were_all_one_number_have_no_deviation():
    assert moved([2, 2], [2, 2])["shift"] == 0.0 and not moved([2, 2], [2, 2])["drifted"]
    told = moved([2, 2], [3, 3], Evaluate(drift_shift=9, drift_ks=1, drift_outside=1))
    assert told["shift"] is None and told["drifted"]


def test_attributes_that_only_one_of_the_models_gives_are_left_out():
    first = kept([{"helpfulness": 1.0, "verbosity": MISSING}, {"helpfulness": 2.0, "verbosity": MISSING}])
    assert list(first) == ["helpfulness"]
    assert list(drift(first, kept([{"verbosity": 1.0, "helpfulness": 2.0}]), LIMITS)) == ["helpfulness"]
    assert drift(first, {}, LIMITS) == {} and kept([]) == {}
