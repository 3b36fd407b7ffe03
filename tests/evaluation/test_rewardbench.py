import pytest

from nemo_sdg.errors import RowError
from nemo_sdg.evaluation.rewardbench import SECTIONS, scores


def everything(value: bool) -> dict:
    return {subset: [value] for section in SECTIONS.values() for subset in section}


def test_the_benchmark_has_23_subsets_with_its_weights():
    assert sum(len(section) for section in SECTIONS.values()) == 23
    sums = {name: sum(section.values()) for name, section in SECTIONS.items()}
    assert sums == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}


def test_all_right_and_all_wrong():
    assert scores(everything(True)) == {"Chat": 1, "Chat Hard": 1, "Safety": 1, "Reasoning": 1, "Overall": 1}
    assert set(scores(everything(False)).values()) == {0}


def test_math_counts_as_much_as_six_code_subsets():
    correct = everything(False) | {"math-prm": [True] * 300 + [False] * 147}
    assert scores(correct)["Reasoning"] == pytest.approx(300 / 447 / 2)
    assert scores(correct)["Overall"] == pytest.approx(300 / 447 / 2 / 4)


def test_sections_are_weighted_by_prompts_not_by_rows_given():
    correct = {"alpacaeval-easy": [True] * 7, "mt-bench-med": [False, False]}
    assert scores(correct) == {"Chat": pytest.approx(100 / 140)}


def test_overall_needs_all_four_sections():
    assert "Overall" not in scores({"donotanswer": [True]})
    one_each = {"mt-bench-easy": [True], "mt-bench-hard": [False], "donotanswer": [True], "hep-go": [True, False]}
    assert scores(one_each) == {"Chat": 1, "Chat Hard": 0, "Safety": 1, "Reasoning": 0.5, "Overall": 0.625}


def test_unknown_and_empty_subsets_are_refused():
    with pytest.raises(RowError, match="found 'donotanswr', expected 'donotanswer'"):
        scores({"donotanswr": [True]})
    with pytest.raises(RowError, match="without rows"):
        scores({"donotanswer": []})
