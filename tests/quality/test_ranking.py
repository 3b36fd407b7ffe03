"""Percentile, length regression and length honesty against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planted import row

from nemo_sdg.config import Select
from nemo_sdg.quality import decide
from nemo_sdg.quality.ranking import length_honesty, length_slope, without_length

WEIGHT = {"helpfulness": 1.0}


def kept(rows: list, **settings: object) -> list[str]:
    return [d.prompt_id for d in decide(rows, Select(minimum={}, weights=WEIGHT, **settings)) if d.kept]


def test_percentile_is_of_the_rows_that_passed_and_keeps_what_is_at_it():
    rows = [row(str(value), f"q{value}", "x", scalar=float(value)) for value in range(1, 11)]
    assert kept(rows, percentile=90.0) == ["10"]  # between 9 and 10: 9.1
    assert kept(rows, percentile=50.0) == ["6", "7", "8", "9", "10"]  # 5.5
    assert kept(rows, percentile=0.0) == kept(rows) and kept(rows, percentile=100.0) == ["10"]
    assert kept(rows, percentile=50.0, minimum_scalar=7.0) == ["9", "10"]  # of 7, 8, 9, 10: 8.5
    assert kept(rows[:3], percentile=50.0) == ["2", "3"]
    equal = [row(str(n), f"q{n}", "x", scalar=0.1) for n in range(7)]
    assert len(kept(equal, percentile=99.0)) == 7 and kept([], percentile=50.0) == []
    reasons = {d.reason for d in decide(rows, Select(minimum={}, weights=WEIGHT, percentile=50.0)) if not d.kept}
    assert reasons == {"below percentile 50"}


def test_the_slope_is_the_least_squares_line_over_the_logarithm():
    characters = np.array([1, 10, 100, 1000])
    logs = np.log(characters)
    exact = 2.0 + 0.5 * logs
    mean, slope = length_slope(exact, characters)
    assert mean == pytest.approx(logs.mean()) and slope == pytest.approx(0.5)
    assert without_length(exact, characters, mean, slope) == pytest.approx([exact.mean()] * 4)
    noise = np.array([0.3, -0.1, 0.4, 0.2])
    mean, slope = length_slope(noise, characters)
    assert slope == pytest.approx(np.polyfit(logs, noise, 1)[0])
    assert without_length(noise, characters, mean, slope).mean() == pytest.approx(noise.mean())


@pytest.mark.parametrize("characters", [[], [5], [5, 5, 5], [0, 0], [0, 1]])
def test_without_a_line_nothing_changes(characters: list[int]):
    scalars = np.arange(len(characters), dtype=float)
    assert length_slope(scalars, np.array(characters, np.int64)) == (0.0, 0.0)
    assert without_length(scalars, np.array(characters, np.int64), 0.0, 0.0).tolist() == scalars.tolist()


def test_length_free_ranks_by_what_length_does_not_explain():
    """The longer the better, but for b, which is good for its length."""
    rows = [row("p", "q", "x" * 10**n, sample=n, scalar=float(n)) for n in range(1, 4)]
    rows.append(row("p", "q", "y" * 20, sample=9, scalar=2.5))
    assert [d.sample for d in decide(rows, Select(minimum={}, weights=WEIGHT, per_prompt=1)) if d.kept] == [3]
    free = decide(rows, Select(minimum={}, weights=WEIGHT, per_prompt=1, length_free=True))
    assert [d.sample for d in free if d.kept] == [9]
    assert [d.scalar for d in free] == [1.0, 2.0, 3.0, 2.5]
    columns = [d.to_row()["scalar_length_free"] for d in free]
    slope, line = np.polyfit(np.log([10, 100, 1000, 20]), [1, 2, 3, 2.5], 1), np.log([10, 100, 1000, 20])
    assert columns == pytest.approx(np.array([1, 2, 3, 2.5]) - slope[0] * (line - line.mean()))


def test_length_honesty_counts_what_length_alone_would_have_kept():
    characters = np.array([10, 20, 30, 40, 50, 60])
    honest = length_honesty(characters, np.array([0, 0, 0, 1, 1, 1], bool))
    assert honest == {"longest": 1.0, "shortest": 0.0, "chance": 0.5}
    assert length_honesty(characters, np.array([1, 0, 1, 0, 1, 0], bool))["longest"] == pytest.approx(1 / 3)
    assert length_honesty(characters, np.zeros(6, bool)) == {}
    assert length_honesty(characters, np.ones(6, bool)) == {"longest": 1.0, "shortest": 1.0, "chance": 1.0}


def test_of_equal_lengths_chance_decides():
    characters = np.array([9, 5, 5, 5, 5, 1])
    honest = length_honesty(characters, np.array([1, 1, 1, 0, 0, 0], bool))
    assert honest["longest"] == pytest.approx((1 + 2 * 2 / 4) / 3)  # 9, and two of the four fives, two of which are kept
    assert honest["shortest"] == pytest.approx((0 + 2 * 2 / 4) / 3)
    assert math.isclose(honest["chance"], 0.5)
