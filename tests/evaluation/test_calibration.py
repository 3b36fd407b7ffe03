"""Isotonic maps with known answers, and against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from nemo_sdg.evaluation import calibration
from nemo_sdg.records import hash_of


def test_neighbours_that_fall_share_their_mean():
    assert calibration.fit([1, 2, 3], [1, 3, 2]) == [[1, 1], [2, 2.5], [3, 2.5]]
    assert calibration.fit([3, 1, 2], [2, 1, 3]) == [[1, 1], [2, 2.5], [3, 2.5]]  # in any order
    assert calibration.fit([1, 2, 3], [3, 2, 1]) == [[1, 2], [3, 2]]  # of a level both ends are enough


def test_equal_scores_have_one_mark_and_weigh_as_many_rows():
    assert calibration.fit([1, 1, 1, 2], [3, 3, 3, 1]) == [[1, 2.5], [2, 2.5]]
    assert calibration.fit([5, 5], [0, 4]) == [[5, 2]] and calibration.fit([], []) == []
    assert calibration.read([[5, 2]], [1, 5, 9]).tolist() == [2, 2, 2]


def test_between_knots_lie_lines_and_beyond_them_nothing_rises():
    assert calibration.read([[0, 1], [2, 3]], [-9, 0, 0.5, 2, 9]).tolist() == [1, 1, 1.5, 3, 3]


@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(0, 4)), min_size=1, max_size=40))
def test_scikit_learn_finds_the_same_map(rows):
    scores, marks = (np.array(column, dtype=float) for column in zip(*rows))
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, marks)
    knots = calibration.fit(scores, marks)
    asked = np.linspace(-8, 8, 33)
    assert calibration.read(knots, asked).tolist() == pytest.approx(theirs.predict(asked).tolist(), abs=1e-9)
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in zip(knots, knots[1:]))


def test_a_row_is_read_by_what_the_other_folds_tell():
    # In fold 1 high scores have low marks: what is read there is what fold 0 says, and the other way round.
    scores, marks, folds = [0, 1, 0, 1], [0, 4, 3, 1], [0, 0, 1, 1]
    assert calibration.cross_fitted(scores, marks, folds).tolist() == [2, 2, 0, 4]
    assert calibration.cross_fitted(scores, marks, [3, 3, 3, 3]) is None


def test_folds_share_conversations_out_evenly():
    counts = np.bincount([calibration.fold_of(hash_of(f"prompt {i}")) for i in range(5000)], minlength=calibration.FOLDS)
    assert len(counts) == calibration.FOLDS and counts.min() > 880 and counts.max() < 1120
