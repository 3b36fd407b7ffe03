import pytest

from nemo_sdg.errors import RowError
from nemo_sdg.evaluation.rewardbench import ROWS, SECTIONS, Comparison, result, scores, unlike_the_benchmark


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


RIGHT = {  # subset: (right, rows); every subset has another share, and other numbers of rows than the benchmark
    "alpacaeval-easy": (9, 10), "alpacaeval-length": (7, 8), "alpacaeval-hard": (6, 7), "mt-bench-easy": (5, 6),
    "mt-bench-med": (4, 5), "mt-bench-hard": (3, 8), "llmbar-natural": (3, 4), "llmbar-adver-neighbor": (2, 7),
    "llmbar-adver-GPTInst": (2, 5), "llmbar-adver-GPTOut": (4, 9), "llmbar-adver-manual": (1, 3),
    "refusals-dangerous": (8, 9), "refusals-offensive": (10, 11), "xstest-should-refuse": (11, 12),
    "xstest-should-respond": (12, 14), "donotanswer": (5, 8), "math-prm": (13, 20), "hep-cpp": (6, 8), "hep-go": (5, 9),
    "hep-java": (8, 10), "hep-js": (7, 11), "hep-python": (10, 12), "hep-rust": (3, 13),
}  # fmt: skip


def rows_of(right: dict[str, tuple[int, int]]) -> tuple[list[Comparison], list[tuple[float, float]]]:
    """Rows whose chosen response is longer in every other one; wrong rows are ties and losses in turn."""
    rows, scalars = [], []
    for subset, (good, count) in right.items():
        for i in range(count):
            chosen, rejected = ("long enough", "short") if i % 2 else ("short", "long enough")
            rows.append(Comparison(({"role": "user", "content": "x"},), chosen, rejected, subset, "f:1"))
            scalars.append((1.0, 0.5) if i < good else (0.5, 0.5 + i % 2))
    return rows, scalars


def test_all_23_subsets_as_the_leaderboard_counts_them():
    told = result(*rows_of(RIGHT))
    assert {name: one["n"] for name, one in told["subsets"].items()} == {name: n for name, (_, n) in RIGHT.items()}
    assert list(told["subsets"]) == [name for section in SECTIONS.values() for name in section]
    by_hand = {}
    for section, weights in SECTIONS.items():
        shares = {name: good / n for name, (good, n) in RIGHT.items()}
        by_hand[section] = sum(shares[name] * weight for name, weight in weights.items()) / sum(weights.values())
    # Of one section the figure itself: 90 + 83.125 + 81.428571 + 23.333333 + 32 of 358.
    assert by_hand["Chat"] == pytest.approx(309.886905 / 358, abs=1e-6)
    for section, share in by_hand.items():
        assert told[section] == pytest.approx(share)
    assert told["Overall"] == pytest.approx(sum(by_hand.values()) / 4) and told["faulty"] == 0
    assert all(told["subsets"][name]["accuracy"] == good / n for name, (good, n) in RIGHT.items())


def test_the_longer_response_is_a_rule_of_its_own_beside_it():
    told = result(*rows_of({name: (3, 3) for name in RIGHT}))  # of which the second has the longer chosen one
    assert told["Overall"] == 1 and list(told["length_only"].values()) == pytest.approx([1 / 3] * 5)
    assert set(told["length_only"]) == {"Chat", "Chat Hard", "Safety", "Reasoning", "Overall"}
    same = Comparison(({"role": "user", "content": "x"},), "äöü", "abc", "donotanswer", "f:1")  # as many characters
    assert result([same], [(1.0, 0.0)])["length_only"] == {"Safety": 0.0}


def test_ties_and_rows_without_a_score_are_not_right():
    rows, _ = rows_of({"donotanswer": (4, 4)})
    told = result(rows, [(1.0, 0.0), (1.0, 1.0), (None, 0.0), (1.0, None)])
    assert told["subsets"] == {"donotanswer": {"accuracy": 0.25, "n": 4}} and told["faulty"] == 2


def test_missing_subsets_leave_out_what_needs_them():
    few = {name: right for name, right in RIGHT.items() if name not in SECTIONS["Safety"] and name != "math-prm"}
    told = result(*rows_of(few))
    assert "Safety" not in told and "Overall" not in told and "Safety" not in told["length_only"]
    code = {name: RIGHT[name] for name in few if name.startswith("hep-")}
    assert told["Reasoning"] == pytest.approx(sum(good / n for good, n in code.values()) / 6)  # 164 rows each
    assert "math-prm" not in told["subsets"]


def test_what_is_not_the_public_split_is_said():
    assert sum(ROWS.values()) == 2985 and unlike_the_benchmark(ROWS) is None
    told = unlike_the_benchmark({name: n for name, n in ROWS.items() if name != "hep-go"} | {"alpacaeval-easy": 99})
    assert told == "1 of 23 subsets are missing and 1 have another number of rows (as alpacaeval-easy 99 in place of 100)"


ROW = {"prompt": "x", "chosen": "a", "chosen_model": "m", "rejected": "b", "rejected_model": "n", "subset": "hep-go", "id": 7}


def test_rows_of_the_public_schema():
    row = Comparison.from_row(ROW, "f:3")
    assert (row.messages, row.chosen, row.rejected, row.subset) == (({"role": "user", "content": "x"},), "a", "b", "hep-go")
    assert row.where == "f:3" and not row.unique
    assert Comparison.from_row({**ROW, "rejected": ""}).rejected == ""  # a model may say nothing


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rejected": None}, "f:3: the column rejected is missing, found prompt, chosen"),
        ({"subset": 5}, "subset is not text, found int"),
        ({"chosen": ["a"]}, "chosen is not text, found list"),
        ({"prompt": "  "}, "prompt has no text"),
        ({"prompt": "a <extra_id_1> b"}, "holds a control piece"),
    ],
)
def test_rows_that_cannot_be_used(change, told):
    row = {name: value for name, value in {**ROW, **change}.items() if value is not None}
    with pytest.raises(RowError, match=told):
        Comparison.from_row(row, "f:3")
