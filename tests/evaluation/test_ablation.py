"""Means and intervals of the arms: known answers."""

from __future__ import annotations

import pytest

from nemo_sdg.evaluation.ablation import compared, interval


def test_the_interval_is_students():
    # t(0.975, 4) = 2.776, s = sqrt(2.5), n = 5
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3.0
    assert (found["low"], found["high"]) == pytest.approx((3 - 1.9633, 3 + 1.9633), abs=1e-4)


def test_one_value_has_no_interval():
    assert interval([0.5]) == {"mean": 0.5, "low": None, "high": None}


def test_differences_are_taken_seed_by_seed():
    # The seeds differ much, the arms by 0.1 in each: seed by seed there is no doubt.
    found = compared({"selected": [0.9, 0.5, 0.7], "random": [0.8, 0.4, 0.6], "unfiltered": [0.7, 0.5, 0.3]})
    assert found["differences"]["random"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert found["differences"]["unfiltered"]["mean"] == pytest.approx(0.2)
    assert found["differences"]["unfiltered"]["low"] < 0
    assert found["arms"]["random"]["mean"] == pytest.approx(0.6)
