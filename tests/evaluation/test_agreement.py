import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.config import ATTRIBUTES, MISSING
from nemo_sdg.evaluation import calibration
from nemo_sdg.evaluation.agreement import agreement
from nemo_sdg.records import hash_of
from nemo_sdg.training.correlation import pearson, ranks, spearman


def test_known_answers():
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert pearson([1, 2, 3], [6, 4, 2]) == pytest.approx(-1.0)
    assert pearson([1, 2, 3, 4], [1, -1, -1, 1]) == pytest.approx(0.0)
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert ranks([10, 20, 20, 5]).tolist() == [2.0, 3.5, 3.5, 1.0]


def test_undefined_is_none_and_not_nan():
    assert pearson([1, 1, 1], [1, 2, 3]) is None
    assert pearson([], []) is None
    assert spearman([1.0], [2.0]) is None


def test_lengths_must_match():
    with pytest.raises(ValueError, match="same length"):
        pearson([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="as many predictions"):
        agreement([], [{}])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-2, 6, width=32)), min_size=3, max_size=40))
def test_scipy_agrees(pairs):
    stats = pytest.importorskip("scipy.stats")
    x, y = zip(*pairs)
    if len(set(x)) == 1 or np.ptp(np.asarray(y, dtype=np.float64)) < 1e-6:
        return
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)
    assert ranks(x).tolist() == stats.rankdata(x).tolist()


def test_rows_of_helpsteer2_with_a_missing_attribute():
    true = [dict.fromkeys(ATTRIBUTES, label) for label in (0, 2, 4)]
    true.append({**dict.fromkeys(ATTRIBUTES, 1), "verbosity": -100})
    predicted = [{name: row[name] + 0.5 if row[name] >= 0 else 9.0 for name in ATTRIBUTES} for row in true]
    result = agreement(predicted, true)
    assert result["helpfulness"] == {
        "pearson": pytest.approx(1.0), "spearman": pytest.approx(1.0), "mae": pytest.approx(0.5),
        "mse": pytest.approx(0.25), "n": 4,
    }  # fmt: skip
    assert result["verbosity"]["n"] == 3 and result["verbosity"]["mae"] == pytest.approx(0.5)
    assert list(result) == list(ATTRIBUTES)


def test_an_attribute_that_the_reward_model_does_not_give_is_left_out():
    true = [dict.fromkeys(ATTRIBUTES, label) for label in (0, 2, 4)]
    predicted = [{**dict.fromkeys(ATTRIBUTES, MISSING), "helpfulness": row["helpfulness"] + 1.0} for row in true]
    result = agreement(predicted, true)
    assert result["helpfulness"]["n"] == 3 and result["helpfulness"]["mae"] == pytest.approx(1.0)
    assert result["verbosity"] == {"pearson": None, "spearman": None, "mae": None, "mse": None, "n": 0}


def test_the_two_errors_are_not_the_same():
    true = [dict.fromkeys(ATTRIBUTES, 2.0)] * 4
    predicted = [dict.fromkeys(ATTRIBUTES, 2.0 + away) for away in (0, 0, 1, -3)]
    told = agreement(predicted, true)["coherence"]
    assert told["mae"] == pytest.approx(1.0) and told["mse"] == pytest.approx(2.5) and told["n"] == 4


def test_calibration_takes_a_constant_error_away_and_is_measured_on_other_prompts():
    labels = [(i * 7) % 5 for i in range(200)]
    true = [dict.fromkeys(ATTRIBUTES, label) for label in labels]
    predicted = [dict.fromkeys(ATTRIBUTES, 3 * label + 10.0) for label in labels]
    told = agreement(predicted, true, [hash_of(i // 2) for i in range(200)])["verbosity"]
    assert told["mae"] > 9 and told["calibrated_mae"] == pytest.approx(0) and told["calibrated_mse"] == pytest.approx(0)
    assert calibration.read(told["knots"], [10, 16, 22, 13, 99]).tolist() == pytest.approx([0, 2, 4, 1, 4])
    # Noise has nothing that other prompts could tell: the map fitted on these very rows would seem to.
    noise = [dict.fromkeys(ATTRIBUTES, (i * 7919) % 200 / 50) for i in range(200)]
    told = agreement(noise, true, [hash_of(i // 2) for i in range(200)])["verbosity"]
    own = calibration.read(told["knots"], [row["verbosity"] for row in noise])
    assert told["calibrated_mse"] > sum((a - b) ** 2 for a, b in zip(own, labels)) / 200 + 0.05


def test_rows_of_one_prompt_tell_nothing_of_themselves():
    true, predicted = ([dict.fromkeys(ATTRIBUTES, float(i)) for i in range(4)] for _ in range(2))
    told = agreement(predicted, true, [hash_of("one")] * 4)["helpfulness"]
    assert told["calibrated_mae"] is None and told["calibrated_mse"] is None and told["knots"] == [[i, i] for i in range(4)]
    with pytest.raises(ValueError, match="as many predictions"):
        agreement(predicted, true, ["one"])
