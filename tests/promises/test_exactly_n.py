"""Ask for 500 rows of the tiny world, get 500; the program that knows the right answers says what revision and best-of-n win."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_sdg.config import Select
from nemo_sdg.quality.revision import root_of, shortfalls
from nemo_sdg.quality.rules import scalarise
from nemo_sdg.quality.versions import Versions
from nemo_sdg.records import Decision
from nemo_sdg.store import StageStore

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "examples" / "tiny"))

import ratings  # noqa: E402

TARGET = 500
WORDS = (
    f"select.target={TARGET}", "select.unique=true", "data.prompts_per_round=192", "run.rounds=1", "sft.enabled=false",
    "reward.enabled=false", "revise.passes=2", "revise.margin=2", "revise.request='{{ prompt }}'",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[list[Decision], Select, str]:
    out = tmp_path_factory.mktemp("exactly") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "nemo_sdg", "run", "tiny", *WORDS, "--out", str(out)],
        cwd=out.parent, capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [Decision.from_row(row) for row in StageStore.finished(out / "round-0/decisions").read()]
    return rows, Select(minimum={"helpfulness": 2.8}), done.stdout


def truth(rows) -> float:
    """Mean true helpfulness."""
    values = [ratings.attributes(row.messages[-1]["content"], row.response)["helpfulness"].value for row in rows]
    return sum(values) / len(values)


def test_five_hundred_rows(run):
    rows, _, said = run
    kept = [row for row in rows if row.kept]
    texts = {(row.messages[-1]["content"], row.response) for row in kept}
    print(f"\nBAR exactly N: {len(kept)} of {TARGET} rows, {len(texts)} different, from {len(rows)} candidates")
    print("\n".join(line for line in said.splitlines() if "rows accepted" in line))
    assert len(kept) == len({row.id for row in kept}) == len(texts) == TARGET


def test_revision_raises_the_true_quality(run):
    rows, limits, _ = run
    revised = {root_of(row) for row in rows if "root" in row.provenance}
    first = [row for row in rows if row.id in revised]
    versions = Versions(limits)
    for row in rows:
        versions.add(row)
    best = [row for row in (rows[number] for number in versions.best()) if root_of(row) in revised]
    passed = sum(shortfalls(row, limits) == [] for row in best)
    print(f"\n{len(first)} answers revised: true helpfulness {truth(first):.2f} -> {truth(best):.2f}, {passed} pass now")
    assert len(first) > 50 and truth(best) > truth(first)


def test_best_of_n_raises_the_true_quality(run):
    rows, limits, _ = run
    first = [row for row in rows if "root" not in row.provenance]
    best: dict[str, Decision] = {}
    for row in first:
        there = best.get(row.prompt_id)
        if there is None or scalarise(row.scores, limits.weights) > scalarise(there.scores, limits.weights):
            best[row.prompt_id] = row
    print(f"\nbest of 4 by the scalar: true helpfulness {truth(first):.2f} -> {truth(best.values()):.2f}")
    assert len(first) > 3.9 * len(best) and truth(best.values()) > truth(first)
