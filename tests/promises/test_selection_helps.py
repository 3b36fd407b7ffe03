"""Was the selection worth it? Three arms of equal size in the tiny world, five seeds. Run with -s to read the figures."""

from __future__ import annotations

import dataclasses

from ranks import run_ranks
from small_run import whole

from nemo_sdg.config import load
from nemo_sdg.store import read_json


def test_selected_rows_teach_more_than_unfiltered_ones(tmp_path):
    config = load("tiny", ["run.rounds=1", "reward.enabled=false", "evaluate.win_rate=null", "evaluate.helpsteer2=null"])
    evaluate = dataclasses.replace(config.evaluate, rewardbench=None, ablation=True, ablation_seeds=5)
    run_ranks(whole, dataclasses.replace(config, evaluate=evaluate), tmp_path / "run", timeout_s=600)
    told = read_json(tmp_path / "run" / "round-0" / "ablation.json")
    print()
    for arm, found in told["arms"].items():
        rows = told["rows"][arm]
        print(f"{arm}: {rows:,} rows, held-out exact match {found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
    for arm, found in told["differences"].items():
        print(f"selected - {arm}: {found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})")
    assert told["rows"]["selected"] == told["rows"]["random"] < told["rows"]["unfiltered"]
    for found in told["differences"].values():
        assert found["mean"] >= 0.05 and found["low"] > 0
