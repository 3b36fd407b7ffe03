"""1,000 changes to good checkpoints of all formats: each is refused by name, or every bit is as it was.

Every parameter is not-a-number before it is filled, so that none can keep what it began with in silence.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from judging import good_ones, judged
from ranks import run_ranks

COUNT = {"release": 400, "hf": 300, "nemo2": 300}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Path]:
    return good_ones(tmp_path_factory.mktemp("mutations"))


@pytest.mark.parametrize("kind", COUNT)
def test_every_mutation(good, kind):
    (results,) = run_ranks(judged, good[kind], kind, range(COUNT[kind]), timeout_s=600)
    table = Counter((name, outcome) for name, _, outcome, _ in results)
    for name, outcome in sorted(table):
        print(f"{table[name, outcome]:5}  {name}: {outcome}")
    print(f"{len(results):5}  {kind}: {dict(Counter(outcome for _, _, outcome, _ in results))}")
    wrong = [f"{name}, seed {seed}: {why}" for name, seed, _, why in results if why]
    assert not wrong, f"{len(wrong)} of {len(results)}\n" + "\n".join(wrong[:25])
    assert len(results) == COUNT[kind]


def test_there_are_a_thousand():
    assert sum(COUNT.values()) >= 1000
