"""Plots: their numbers by known answers, and that they fit into a page."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemo_sdg.evaluation.report import plots


def test_bins_known_answer():
    """A score on an edge lies in the bin that begins there; no score is lost at either end."""
    values = np.array([-0.1, 0.0, 0.2, 0.25, 0.5, 1.0])
    edges, before, after = plots.bins(values, values >= 0.25)
    assert edges.tolist() == [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert before.tolist() == [1, 2, 1, 1, 0, 1] and after.tolist() == [0, 0, 1, 1, 0, 1]
    assert before.sum() == len(values)
    assert plots.bins(np.array([]), np.array([], bool))[1].sum() == 0


@pytest.mark.parametrize("far", [-100.0, 99.0, 1e9, -3e38, 1e308])
def test_one_score_far_away_makes_wide_bins_and_not_many(far):
    values = np.array([0.0, 1.0, 2.0, far])
    edges, before, after = plots.bins(values, values > 1.5)
    assert len(edges) <= 403 and before.sum() == 4 and after.sum() == np.count_nonzero(values > 1.5)
    assert (np.diff(edges) > 0).all() and edges[0] <= values.min() and values.max() < edges[-1]
    assert (edges[1] - edges[0] == plots.WIDTH) == (far == 99.0)
    assert "<svg" in plots.histogram("x", values, None, [2.0])


def test_bins_of_a_single_score_that_is_large():
    edges, before, _ = plots.bins(np.array([1e300, 1e300]), np.zeros(2, bool))
    assert len(edges) <= 3 and before.tolist()[0] == 2 and edges[0] <= 1e300 < edges[1]


def test_a_line_is_thinned_by_means():
    assert plots._thinned([1.0, math.nan, 3.0]) == [(1.0, 1.0), (3.0, 3.0)]
    points = plots._thinned([float(i) for i in range(1000)])
    assert len(points) <= 400 and points[0] == (2.0, 1.0)  # steps 1 to 3, values 0 to 2


def test_curves_without_spread_or_with_values_that_are_not_finite():
    assert plots.curves("loss", {"a": []}, {}) == "" and plots.curves("loss", {"a": [math.nan]}, {}) == ""
    assert "nan" not in plots.curves("loss", {"a": [1.0, math.nan, 1.0]}, {}).lower()
    assert "<svg" in plots.curves("loss", {"a": [2.0]}, {"a": [(1, 2.5), (2, math.inf)]})


def test_texts_stay_texts_and_nothing_names_an_address():
    drawn = plots.histogram("<b> & $x$", np.array([0.5, 3.0]), np.array([True, False]), [2.8, None])
    drawn += plots.curves("loss", {"a $b$ <c>": [1.0, 2.0]}, {})
    assert "&lt;b&gt; &amp; $x$" in drawn and "a $b$ &lt;c&gt;" in drawn
    for word in ("http", "<style", "<metadata", "xmlns", "font-family", "#010"):
        assert word not in drawn, word
    assert "currentColor" in drawn and "var(--mark)" in drawn and len(drawn) < 30_000


def test_the_same_numbers_give_the_same_bytes():
    one = [plots.histogram("x", np.arange(5.0), None, ()) for _ in range(2)]
    assert one[0] == one[1]
