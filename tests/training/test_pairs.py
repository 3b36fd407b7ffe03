"""Bradley-Terry on pairs that are single samples: what they are, their loss, and the same fit everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import run_ranks

from nemo_sdg.config import MISSING, Models, RewardTraining
from nemo_sdg.errors import RowError
from nemo_sdg.models import templates
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training import losses
from nemo_sdg.training.objectives import bradley_terry, regression
from nemo_sdg.training.pairs import pair_sample
from training import worlds
from training.test_topologies import weights

HELPSTEER2 = {"split": "train", "prompt": "red", "response_1": "blue", "response_2": "green", "preference_strength": 2}
TURN = templates.TURN


@pytest.fixture(scope="module")
def tokenizer(world) -> Tokenizer:
    return Tokenizer(world / "tokenizer.model")


def texts(tokenizer, row, **more):
    sample = pair_sample(row, tokenizer, **{"weighed": True, **more})
    return [tokenizer.decode(tokens.tolist()) for tokens in sample.sequences], sample.targets.item()


def reward_prompt(*spoken):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(spoken)]
    return templates.reward_prompt(turns)


def test_the_published_preferences(tokenizer):
    """HelpSteer2's preference subset: below 0 the first response is the better one."""
    assert texts(tokenizer, HELPSTEER2) == ([reward_prompt("red", "green"), reward_prompt("red", "blue")], 2.0)
    first = {**HELPSTEER2, "preference_strength": -3}
    assert texts(tokenizer, first) == ([reward_prompt("red", "blue"), reward_prompt("red", "green")], 3.0)
    turns = {**HELPSTEER2, "prompt": "red\n<extra_id_1>Assistant\none\n<extra_id_1>User\ntwo"}
    assert texts(tokenizer, turns)[0][0] == reward_prompt("red", "one", "two", "green")


def test_our_pairs_are_scored_under_the_fixed_system_text(tokenizer):
    """The prompt of a preference row is Instruct's; a reward model never sees it, nor its system text."""
    asked = [{"role": "system", "content": "be blue"}, {"role": "user", "content": "red"}]
    row = {"prompt": templates.instruct_prompt(asked), "chosen_response": f"one\n{TURN}",
           "rejected_response": f"two\n{TURN}", "chosen_reward": 3.5, "rejected_reward": 1.25}  # fmt: skip
    assert texts(tokenizer, row) == ([reward_prompt("red", "one"), reward_prompt("red", "two")], 2.25)
    without = {key: value for key, value in row.items() if not key.endswith("_reward")}
    assert texts(tokenizer, without)[1] == 1.0  # NeMo-Aligner's defaults: 1 and 0
    trl = {"prompt": [{"role": "user", "content": "red"}], "chosen": "one", "rejected": "two"}
    assert texts(tokenizer, trl) == ([reward_prompt("red", "one"), reward_prompt("red", "two")], 1.0)


BAD = {
    "a tie": ({**HELPSTEER2, "preference_strength": 0}, "a tie"),
    "beyond the scale": ({**HELPSTEER2, "preference_strength": 4}, "out of range"),
    "no strength": ({**HELPSTEER2, "preference_strength": None}, "not a number"),
    "the same answer twice": ({**HELPSTEER2, "response_1": "green"}, "both answers are the same"),
    "another split": ({**HELPSTEER2, "split": "validation"}, "not of its file's train split"),
    "no answer": ({key: value for key, value in HELPSTEER2.items() if key != "response_2"}, "response_2 has no text"),
    "no pair": ({"text": "x", "label": []}, "no single prompt"),
}


@pytest.mark.parametrize("name", BAD)
def test_pairs_that_are_set_aside(tokenizer, name):
    row, reason = BAD[name]
    with pytest.raises(RowError, match=reason):
        texts(tokenizer, row)


def test_rows_of_ours_that_are_set_aside(tokenizer):
    good = worlds.pair_rows(1)[0]
    for change, reason in [
        ({"prompt": good["prompt"] + "x"}, "the prompt is not what Instruct continues"),
        ({"prompt": None}, "the prompt is not what Instruct continues"),
        ({"chosen_response": "x"}, "does not end its turn"),
        ({"rejected_response": f"\n{TURN}"}, "empty or holds a marker"),
        ({"rejected_response": f"a\n{TURN}User\nb\n{TURN}"}, "empty or holds a marker"),
        ({"chosen_reward": None}, "not a number"),
        ({"chosen_reward": 0.5}, "the rewards do not say"),
    ]:
        with pytest.raises(RowError, match=reason):
            texts(tokenizer, {**good, **change})
    assert texts(tokenizer, {**good, "chosen_reward": 0.5}, weighed=False)[1] == -0.5  # a verifier may overrule rewards


def test_validation_takes_the_rows_of_its_split(tokenizer):
    held_out = {**HELPSTEER2, "split": "validation"}
    assert texts(tokenizer, held_out, split="validation")[1] == 2.0
    with pytest.raises(RowError, match="not of its file's validation split"):
        texts(tokenizer, HELPSTEER2, split="validation")


def batch(strengths):
    return {"targets": torch.tensor(strengths, dtype=torch.float64)[:, None]}


def test_equal_rewards_lose_ln_2():
    rewards = torch.randn(6, 9, dtype=torch.float64)
    rewards[:, 4] = 1.5
    for kind, expected in [("regular", 3 * math.log(2)), ("scaled", 6 * math.log(2))]:
        total, count = bradley_terry(kind, 4)(batch([1.0, 2.0, 3.0]), rewards)
        assert total.item() == pytest.approx(expected, abs=1e-14) and count == 3
    total, _ = bradley_terry("margin", 4)(batch([1.0, 2.0, 3.0]), rewards)
    assert total.item() == pytest.approx(sum(math.log1p(math.exp(m)) for m in (1, 2, 3)), abs=1e-14)


def test_only_the_compared_output_learns_and_the_chosen_one_rises():
    rewards = torch.zeros(4, 9, dtype=torch.float64, requires_grad=True)
    bradley_terry("scaled", 4)(batch([1.0, 3.0]), rewards)[0].backward()
    assert rewards.grad[:, 4].tolist() == [-0.5, 0.5, -1.5, 1.5]  # strength x (sigmoid - 1)
    assert (rewards.grad[:, [0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()


def test_masked_attributes_have_no_gradient():
    rewards = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.full((2, 9), MISSING, dtype=torch.float64)
    labels[0, 4], labels[1, 8] = 3.0, 1.0
    total, count = regression({"targets": labels}, rewards)
    total.backward()
    assert count == 2 and (rewards.grad != 0).nonzero().tolist() == [[0, 4], [1, 8]]


@pytest.mark.parametrize("kind", ["regular", "margin", "scaled"])
def test_gradients_are_those_of_finite_differences(kind):
    draw = torch.Generator().manual_seed(1)
    pair = [torch.randn(5, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(2)]
    strength = torch.tensor([0.5, 1.0, 2.0, 3.0, 1.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c, r: losses.bradley_terry(c, r, strength, kind), pair)


def test_half_precision_rewards_are_compared_in_fp32():
    """The error of a bf16 reward has more digits than bf16 holds."""
    rewards = torch.zeros(1, 9, dtype=torch.bfloat16)
    labels = torch.full((1, 9), MISSING, dtype=torch.float64)
    labels[0, 4] = 3.03
    assert regression({"targets": labels}, rewards)[0].item() == pytest.approx(3.03**2, rel=1e-6)


SETTINGS = RewardTraining(
    steps=4, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=1, clip_grad=0.0,
    objective="bradley_terry_scaled",
)  # fmt: skip
ROWS = {"regression": "reward.jsonl", "bradley_terry_scaled": "pairs.jsonl"}


def train(mesh, world, out, settings, **more):
    from nemo_sdg.training.fit import fit

    rows = world / ROWS[settings.objective]
    options = {"models": Models(dtype="fp64"), "start": world / "base", "rows": rows, "seed": 5, **more}
    return fit("reward", settings, out=out, mesh=mesh, **options)["losses"]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """Losses and trained weights of both objectives on one rank, each sample in a row of its own."""
    root = tmp_path_factory.mktemp("alone")
    found = {}
    for objective in ROWS:
        settings = replace(SETTINGS, objective=objective)
        losses = run_ranks(train, world, root / objective, settings)[0]
        found[objective] = losses, run_ranks(weights, root / objective)[0]
    return found


PACKED = {"micro_batch_size": 1, "packed_sequence_size": 512}
WAYS = {
    "accumulated": ({}, {"micro_batch_size": 8}),  # 1 micro batch a step, in place of 4
    "packed": ({}, PACKED),
    "TP2": (dict(tp=2), {}),
    "TP2, sequence parallel, packed": (dict(tp=2, sequence_parallel=True), PACKED),
    "PP2": (dict(pp=2), {}),
    "TP2 PP2": (dict(tp=2, pp=2), {}),
    "DP2, packed": (dict(dp=2), PACKED),
    "DP2": (dict(dp=2), {}),
}


@pytest.mark.parametrize(
    "objective, way",
    [("bradley_terry_scaled", way) for way in WAYS] + [("regression", "accumulated")],
)
def test_the_same_fit_everywhere(world, alone, tmp_path, objective, way):
    grid, changes = WAYS[way]
    more = {"sequence_parallel": grid.get("sequence_parallel", False)}
    settings = replace(SETTINGS, objective=objective, **changes)
    losses, trained = alone[objective]
    for found in run_ranks(lambda mesh: train(mesh, world, tmp_path / "out", settings, **more), **grid):
        assert found == pytest.approx(losses, abs=1e-9)
    result = run_ranks(weights, tmp_path / "out")[0]
    for key in trained:
        np.testing.assert_allclose(result[key], trained[key], rtol=0, atol=1e-9, err_msg=key)


def head_after_a_step(mesh, world, start, out, keep_head):
    from nemo_sdg.training.fit import fit

    settings = replace(SETTINGS, steps=1, weight_decay=0.0, keep_head=keep_head)
    options = {"models": Models(dtype="fp64"), "rows": world / "pairs.jsonl", "mesh": mesh, "seed": 5}
    fit("reward", settings, start=start, out=out, **options)
    return weights(mesh, start)["rm_head.weight"], weights(mesh, out)["rm_head.weight"]


@pytest.mark.parametrize("keep_head", [True, False])
def test_another_reward_models_head_is_kept_or_not(world, tmp_path, keep_head):
    """Without weight decay nothing moves the outputs that are not compared."""
    run_ranks(lambda mesh: worlds.write_start(mesh, tmp_path / "reward", world / "tokenizer.model", reward=True))
    start, after = run_ranks(head_after_a_step, world, tmp_path / "reward", tmp_path / "out", keep_head)[0]
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert (start[others] == after[others]).all() == keep_head and (start[4] != after[4]).any()
