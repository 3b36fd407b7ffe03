"""Bar 3: every kind of file of two real rounds, cut, flipped, zeroed, lengthened, exchanged and lost."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from damage import NOTES, PAGE, damaged, kinds, silent, silent_swap, silent_without, swaps

from nemo_sdg.console import Console
from nemo_sdg.store import StageStore
from nemo_sdg.store.verifying import check_entry, verify_run

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("data.prompts_per_round=24", "generate.samples=2", "generate.group_size=8", "sft.steps=4", "reward.steps=4")
CUTS, FLIPS, SWAPS = 200, 500, 300


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two rounds of the tiny world with all that a run writes, as a user gets them."""
    out = tmp_path_factory.mktemp("kinds") / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for words in (["run", "tiny", *SMALL, "--out", str(out)], ["report", str(out)]):
        command = [sys.executable, "-m", "nemo_sdg", *words]
        done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
    assert verify_run(out, Console(io.StringIO())) == []
    return out


def test_every_kind(run):
    chance, counts, passed = random.Random(3), Counter(), []
    for kind, file in kinds(run).items():
        if kind in NOTES:
            continue
        for what, content in damaged(file.read_bytes(), chance, cuts=CUTS, flips=FLIPS):
            counts[what] += 1
            passed += [f"{kind} {what}"] if silent(run, file, content) else []
        if kind != PAGE:
            counts["lost"] += 1
            passed += [f"{kind} lost"] if silent_without(run, file) else []
    for one, other in swaps(run, chance, SWAPS):
        counts["exchanged"] += 1
        passed += [f"{one} and {other}"] if silent_swap(run, one, other) else []
    held = set(kinds(run)) - NOTES
    print(f"\n{len(held)} kinds of files: {dict(counts)}; not held: {', '.join(sorted(set(kinds(run)) & NOTES))}")
    print(f"BAR 3: {len(passed)} silent acceptances of {sum(counts.values())} / 0")
    assert len(held) > 35 and counts["flipped"] >= FLIPS * (len(held) - 4) and not passed, "\n".join(passed[:20])


def test_the_speed_of_looking(tmp_path):
    store = StageStore(tmp_path / "rows", "f", 32, 1)
    row = {"text": "x" * (3 << 20)}
    for group in store.groups:
        store.commit(group, [row])
    store.finish({"rows_in": 32, "kept": 32})
    began = time.process_time()
    assert check_entry(tmp_path / "rows") == []
    seconds = time.process_time() - began
    size = sum(file.stat().st_size for file in (tmp_path / "rows").iterdir())
    print(f"\nBAR 3: {seconds / size * 1e8:.2f} s of one core for 100 MB of parts / 1")
