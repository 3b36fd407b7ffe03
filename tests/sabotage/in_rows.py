"""What comes in is checked, and what goes into a dataset has earned it."""

from __future__ import annotations

from sabotage.patch import Patch

READING, RULES, PAIRS = "nemo_sdg/records/reading.py", "nemo_sdg/quality/rules.py", "nemo_sdg/quality/pairs.py"
RECORDS, SELECTION = "tests/test_records.py", "tests/quality/test_selection.py"

PATCHES = [
    Patch(
        "A row in which a key stands twice is not used.", READING,
        "if len(row) < len(pairs):", "if len(row) > len(pairs):",
        f"{RECORDS}::test_faulty_lines_are_set_aside_and_the_others_go_on",
    ),
    Patch(
        "A faulty line of a user's file is counted with its place and reason.", READING,
        'yield number, Fault(name, line, str(error).removeprefix(f"{where}: ")[:_TOLD])', "continue",
        f"{RECORDS}::test_faulty_lines_are_set_aside_and_the_others_go_on",
    ),
    Patch(
        "-100 means missing and is no label of a person.", "nemo_sdg/records/fields.py",
        "if not 0 <= value <= 4:", "if not value <= 4:",
        f"{RECORDS}::test_a_label_outside_0_to_4_or_missing_is_refused[-100]",
    ),
    Patch(
        "Scores are stored as they come, to the last bit of a float32.", "nemo_sdg/records/fields.py",
        "            return short\n", "            return round(short, 2)\n",
        f"{RECORDS}::test_shortest_decimal_known_answers",
    ),
    Patch(
        "A row whose score is the limit itself is kept.", RULES,
        "if scores[name] < low:", "if scores[name] <= low:",
        f"{SELECTION}::test_a_limit_itself_passes_and_the_reason_names_the_limit",
    ),
    Patch(
        "A score that is not a number never becomes one.", RULES,
        "        return math.nan\n", "        return 0.0\n",
        f"{SELECTION}::test_a_score_that_is_not_finite_never_passes_any_rule[helpfulness-nan]",
    ),
    Patch(
        "What was not scored has no weight in the scalar.", RULES,
        "if scores.get(name, MISSING) != MISSING}", "if name in scores}",
        f"{SELECTION}::test_what_was_not_scored_has_no_weight_and_passes_no_limit",
    ),
    Patch(
        "Of several responses the choice does not depend on the order of arrival.", PAIRS,
        "return judge != VERIFIER, -margin, better.sample, worse.sample, better.id, worse.id",
        "return judge != VERIFIER, -margin", "tests/quality/test_pairs.py::test_the_order_of_arrival_changes_nothing",
    ),
    Patch(
        "A response that is known to be wrong is never chosen.", PAIRS,
        "if rank[better.id] and (better.kept", "if (better.kept",
        "tests/quality/test_pairs.py::test_among_equally_right_ones_the_score_decides_and_a_wrong_one_is_never_chosen",
    ),
    Patch(
        "A text of an evaluation file is found by thirteen words in a row.", "nemo_sdg/quality/references.py",
        "owners = index.owners(text.grams(self._n * (CHARACTERS_PER_WORD if unspaced else 1)))",
        "owners = index.owners(text.grams((self._n + 1) * (CHARACTERS_PER_WORD if unspaced else 1)))",
        "tests/quality/test_references.py::test_thirteen_words_in_a_row_are_a_leak_and_twelve_are_not",
    ),
    Patch(
        "A row at the threshold of likeness is a near duplicate.", "nemo_sdg/quality/duplicates.py",
        "if all(jaccard(a, b) >= self._threshold", "if all(jaccard(a, b) > self._threshold",
        "tests/quality/test_duplicates.py::test_a_row_at_the_threshold_is_a_near_duplicate",
    ),
    Patch(
        "A prompt that an evaluation holds out is not trained on.", "nemo_sdg/stages/examples.py",
        '        if row.messages in self._held_out:\n            return "held out"\n        said = (row.id,',
        "        said = (row.id,", "tests/stages/test_assemble.py::test_a_held_out_prompt_is_in_no_file",
    ),
    Patch(
        "Math counts as much as the six code subsets of RewardBench together.", "nemo_sdg/evaluation/rewardbench.py",
        '        "math-prm": 984,\n', '        "math-prm": 447,\n',
        "tests/evaluation/test_rewardbench.py::test_math_counts_as_much_as_six_code_subsets",
    ),
]  # fmt: skip
