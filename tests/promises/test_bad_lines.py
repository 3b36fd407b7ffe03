"""Bars 12 and 13: 100,000 mutated lines, and scores that are no numbers."""

from __future__ import annotations

import itertools
import json
import math
import random
import time

import bad_lines
import pytest
from defects import DEFECTS, LABEL_DEFECTS
from rounds import context, scored, write_scored

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.stages import assemble, select

COUNT = 100_000


def test_a_hundred_thousand_mutated_lines(tmp_path):
    parts = [bad_lines.fuzz(tmp_path, count=COUNT // 20, seed=seed, alone=True) for seed in range(20)]
    lines, kept, faulty = (sum(part[key] for part in parts) for key in ("lines", "kept", "faulty"))
    slowest = max(part["slowest"] for part in parts)
    print(f"\nBAR 12: {lines:,} lines, {kept:,} kept + {faulty:,} set aside, 0 tracebacks / {COUNT:,}")
    print(f"BAR 12: slowest line {slowest:.4f} s of CPU / {bad_lines.SLOWEST_S}")
    assert lines >= COUNT and lines == kept + faulty and slowest < bad_lines.SLOWEST_S


def test_no_defect_takes_long(tmp_path):
    slowest = {}
    hard = {
        "2 MB of numbers": b'{"prompt": "x", "n": [' + b"1.5," * ((1 << 19) - 20) + b"1]}",
        "200,000 lists": b'{"prompt": "x", "n": [' + b"[]," * 199_990 + b"[]]}",
        "2 MB of lists": b'{"prompt": "x", "n": [' + b"[]," * ((2 << 20) // 3 - 20) + b"[]]}",
        "2 MB of keys": b'{"prompt": "x"' + b"".join(b',"%x":1' % i for i in range(200_000)) + b"}",
        "2 MB of escapes": b'{"prompt": "' + b"\\u00e4" * ((2 << 20) // 6 - 20) + b'"}',
        "2 MB of turns": b'{"messages": [' + b'{"role":"x","content":"y"},' * 75_000 + b"{}]}",
        "100 MB": b'{"prompt": "' + b"x" * 100_000_000 + b'"}',
    }
    for name, data in {**hard, **{name: bad for name, (bad, _) in DEFECTS.items()}}.items():
        (tmp_path / "line.jsonl").write_bytes(data + b"\n")
        began = time.process_time()
        bad_lines.read_rows(tmp_path / "line.jsonl", bad_lines.Prompt)
        slowest[name] = time.process_time() - began
    name = max(slowest, key=slowest.get)
    count = len(DEFECTS) + len(LABEL_DEFECTS)
    print(f"\nBAR 12: slowest of {count} kinds of defect and {len(hard)} hard lines: {name}, {slowest[name]:.2f} s / 1")
    assert slowest[name] < bad_lines.SLOWEST_S


VALUES = (math.nan, math.inf, -math.inf, 1e39, -1e39)


@pytest.mark.parametrize("weighted", ["{}", "{helpfulness: 3}"])
def test_scores_that_are_no_numbers_reach_no_dataset(tmp_path, weighted):
    """Each attribute by each value, and two at a time; what is finite, however odd, stays what it is."""
    rows = [scored(f"good {i}", 0, f"answer {i}", helpfulness=3.5) for i in range(20)]
    for number, (name, value) in enumerate(itertools.product(ATTRIBUTES, VALUES)):
        rows.append(scored(f"bad {number}", 0, f"bad answer {number}", **{name: value}))
        two = {"helpfulness": math.nan, name: value}
        rows.append(scored(f"worse {number}", 0, f"worse answer {number}", **two))
    rows.append(scored("odd", 0, "odd answer", helpfulness=1e38, complexity=1e-42))
    random.Random(5).shuffle(rows)
    where = context(tmp_path, f"select.minimum={weighted}", "select.maximum={}")
    write_scored(where, rows)
    chosen, written = select.run(where), assemble.run(where)
    bad = len(rows) - 21
    assert chosen["rows_in"] == len(rows) == chosen["kept"] + sum(chosen["dropped"].values()) and chosen["kept"] == 21
    assert written["reward"]["kept"] == 21 and written["reward"]["dropped"] == {"score not finite": bad}
    found = bad_lines.not_finite(tmp_path / "run")
    labels = [json.loads(line)["label"] for line in open(where.folder / "datasets/reward.jsonl")]
    assert all(math.isfinite(value) for label in labels for value in label) and not found
    texts = (where.folder / "datasets/sft.jsonl").read_text()
    assert "bad answer" not in texts and "worse answer" not in texts and "odd answer" in texts
    print(f"\nBAR 13: 0 of {bad} rows with a score that is no number in a dataset ({weighted}) / 0")
