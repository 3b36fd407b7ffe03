"""The figures of an evaluation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_sdg.console import Console
from nemo_sdg.evaluation.rewardbench import SECTIONS, unlike_the_benchmark


def show(found: Mapping[str, Any], console: Console) -> None:
    """Prints what is there of the figures of one state of evaluation.json."""
    policy, instructions, won = (found.get(name) for name in ("policy", "instructions", "win_rate"))
    rows = []
    if policy:
        rows.append(("exact match", policy["exact_match"], _interval(policy), policy["n"], policy["faulty"]))
    if instructions:
        for kind in ("strict", "loose"):
            interval = _interval(instructions) if kind == "strict" else ""
            prompts = (f"instructions, all of a prompt, {kind}", instructions[f"prompt_{kind}"], interval)
            rows.append((*prompts, instructions["prompts"], instructions["faulty"]))
            each = (f"instructions, each, {kind}", instructions[f"instruction_{kind}"], "")
            rows.append((*each, instructions["instructions"], ""))
    if won:
        rows.append(("win rate, ties counted half", won["win_rate"], _interval(won), won["n"], won["faulty"]))
        rows.append(("win rate at equal length", won["controlled"]["win_rate"], _interval(won["controlled"]), won["n"], ""))
    if rows:
        console.table("policy", ["", "share", "95 % interval", "n", "faulty"], rows)
    if won:
        console.say(f"  {won['wins']} wins, {won['ties']} ties, {won['losses']} losses")
    if found.get("reward"):
        names = ["pearson", "spearman", "mae", "mse", "calibrated_mae", "calibrated_mse", "n"]
        rows = [(attribute, *(told[name] for name in names)) for attribute, told in found["reward"].items()]
        console.table("reward model, agreement with people", ["", *(name.replace("_", " ") for name in names)], rows)
        console.say(f"  {found['reward_faulty']} rows without a label or a score; calibrated: on prompts not calibrated on")
    if found.get("rewardbench"):
        _rewardbench(found["rewardbench"], console)


def _rewardbench(told: Mapping[str, Any], console: Console) -> None:
    subsets, length = told["subsets"], told["length_only"]
    rows = [(name, subsets[name]["accuracy"], subsets[name]["n"]) for part in SECTIONS.values() for name in part
            if name in subsets]  # fmt: skip
    console.table("RewardBench, by subset", ["", "accuracy", "n"], rows)
    rows = [(name, told[name], length[name]) for name in (*SECTIONS, "Overall") if name in told]
    console.table("RewardBench", ["", "accuracy", "the longer one"], rows)
    unlike = unlike_the_benchmark({name: one["n"] for name, one in subsets.items()})
    if unlike is not None:
        console.say(f"  not the split `filtered` of RewardBench, so these are not its leaderboard's figures: {unlike}")
    console.say(f"  {told['faulty']} faulty rows; one that the model cannot score counts as wrong, as a tie does")


def _interval(told: Mapping[str, Any]) -> str:
    return "-" if told["low"] is None else f"{told['low']:.3f} to {told['high']:.3f}"
