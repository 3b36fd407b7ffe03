"""A sample of `make promises`: hostile checkpoints under the audit hook, and mutated ones, in a few seconds."""

from __future__ import annotations

import hostile
import pytest
from judging import KINDS, good_ones, judged
from mutations import HF, NEMO2, RELEASE
from ranks import run_ranks


def test_a_few_hostile_checkpoints_of_each_kind(tmp_path):
    good = hostile.good_ones(tmp_path)
    for path in good.values():
        assert hostile.opened(path) == "good"  # also imports all that reading imports
        seen = hostile.look(path)
        assert (seen.outcome, seen.violations) == ("good", ())
    cases = hostile.all_cases(good, tmp_path)[::8]
    assert {case.name.split(":")[0] for case in cases} == {"release", "hf", "nemo2", "nemo"} and len(cases) >= 30
    wrong = {case.name: hostile.wrong_with(case, hostile.look(case.path)) for case in cases}
    assert not [f"{name}: {why}" for name, why in wrong.items() if why]
    assert not hostile.canary(tmp_path).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_one_mutation_of_each_sort(kind, tmp_path):
    count = len({"release": RELEASE, "hf": HF, "nemo2": NEMO2}[kind])
    (results,) = run_ranks(judged, good_ones(tmp_path)[kind], kind, range(count))
    assert not [result for result in results if result[3]]
    assert len({name for name, *_ in results}) == count
