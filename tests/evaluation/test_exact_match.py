import pytest

from nemo_sdg.evaluation.exact_match import exact_match


def test_share():
    found = exact_match([("1", "1"), ("2", "1"), ("x\n3", "3"), ("4", "4 ")])
    assert found == {"exact_match": 0.75, "low": pytest.approx(0.301, abs=1e-3), "high": pytest.approx(0.954, abs=1e-3), "n": 4}
    assert exact_match([]) == {"exact_match": None, "low": None, "high": None, "n": 0}
