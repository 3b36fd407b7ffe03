"""A reward model that regression trains from Base in the tiny world: how it agrees with held-out people's marks.

The shipped rated rows are 3,000, which Base learns by heart; here are as many as it takes, drawn by the same pupils for
tasks of the training part, none twice. Base has four layers in which to work out the right answer and to compare it,
letter by letter, with the one that was given; what it misses is a wrong letter or digit. Run with -s to read the figures.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from ranks import run_ranks

from nemo_sdg.config import Models, RewardTraining

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
ROWS = 200_000


def write_rows(path: Path) -> None:
    sys.path.insert(0, str(TINY))
    try:
        from data import rated_rows
        from world import draw_task
    finally:
        sys.path.remove(str(TINY))
    rng = random.Random("rated afresh")
    with open(path, "w") as file:
        for _ in range(ROWS // 2):
            task, earlier = (draw_task(rng, held_out=False) for _ in range(2))
            file.writelines(json.dumps(row) + "\n" for row in rated_rows(rng, [task], [earlier]))


def train(mesh, rows: Path, root: Path) -> dict:
    """At a rate that moves it far, then at a small one; NeMo's schedule is constant after its warm-up."""
    from nemo_sdg.training.fit import fit

    start = TINY / "base"
    for name, steps, rate in (("far", 3000, 1e-3), ("near", 1000, 2e-4)):
        settings = RewardTraining(
            steps=steps, global_batch_size=64, micro_batch_size=16, max_length=256, learning_rate=rate, warmup_steps=50,
            weight_decay=0.01, validate_every=steps // 5,
        )  # fmt: skip
        result = fit(
            "reward", settings, models=Models(dtype="fp32"), start=start, rows=rows, out=root / name, mesh=mesh, seed=1,
            validation=TINY / "data" / "helpsteer2_validation.jsonl",
        )  # fmt: skip
        start = root / name
    return result


def test_regression_from_base_agrees_with_held_out_marks(tmp_path):
    write_rows(tmp_path / "rows.jsonl")
    result = run_ranks(train, tmp_path / "rows.jsonl", tmp_path)[0]
    best = next(told for told in result["validation"] if told["step"] == result["best_step"])
    print()
    for name, found in best["attributes"].items():
        print(f"held-out Pearson of {name} {found['pearson']:.3f}, mean squared error {found['error']:.2f}, {found['n']} rows")
    print(f"of {best['pairs']} pairs in the right order {best['pair_accuracy']:.3f}")
    assert best["attributes"]["helpfulness"]["pearson"] >= 0.8
    assert best["pair_accuracy"] >= 0.78
