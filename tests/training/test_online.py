"""A fit that learns from its own answers: who generates, what is fed, and that neither topology nor a kill matters."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Generate, Models, Preference, Select, Training
from nemo_sdg.errors import ConfigError
from nemo_sdg.records import Prompt
from training import worlds
from training.test_topologies import weights

SETTINGS = Training(
    steps=6, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=0, clip_grad=0.0
)
PROMPTS = [
    Prompt(f"p{i}", ({"role": "user", "content": f"{worlds.WORDS[i]} {worlds.WORDS[i + 1]}"},)) for i in range(5)
]
# Passes of few tokens: under sequence parallelism, were it not off meanwhile, the second rank would hold some prompts' ends.
GENERATE = Generate(samples=3, max_tokens=6, temperature=1.0, slots=8, prefill_tokens=64)
EVERY = 2


@pytest.fixture(scope="module")
def head(world):
    def write(mesh):
        worlds.write_start(mesh, world / "head", world / "tokenizer.model", reward=True)

    run_ranks(write)
    return world / "head"


def online(mesh, head, **changes):
    from nemo_sdg.config import Score
    from nemo_sdg.engine.backends.local import LocalScorer
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.training.online import Online

    scorer = changes.pop("scorer", None)
    if scorer is None:
        model, tokenizer = load_model(head, mesh, dtype="fp64", reward=True)
        scorer = LocalScorer(model, tokenizer, mesh, Score(), {"reward": "head"})
    # A response of a random model is cut off mostly; the best of each prompt is kept whatever its scores.
    select = Select(minimum={}, finished=False, unique=False, per_prompt=1)
    options = {"prompts": PROMPTS, "every": EVERY, "prompts_at_once": 4, "generate": GENERATE, "select": select, "seed": 3}
    return Online(scorer=scorer, **{**options, **changes})


PAIRS = Preference(
    objective="rpo", beta=0.1, eta=1.0, sft_weight=1e-3, margin=0.0, selected=False, **{
        key: getattr(SETTINGS, key)
        for key in ("steps", "global_batch_size", "micro_batch_size", "max_length", "learning_rate", "warmup_steps", "clip_grad")
    },
)  # fmt: skip


def train_pairs(mesh, world, head, out, settings=PAIRS, on_step=None, validation=None):
    """Online RPO."""
    from nemo_sdg.training.fit import fit
    from nemo_sdg.training.online import OwnPairs

    asked = online(mesh, head, teach=OwnPairs(PAIRS, Select(minimum={}, finished=False, unique=False)))
    return fit(
        "preference", settings, models=Models(dtype="fp64"), start=world / "base", rows=asked, out=out, mesh=mesh, seed=5,
        on_step=on_step, validation=validation,
    )  # fmt: skip


def train(
    mesh, world, head, out, settings=SETTINGS, on_step=None, sequence_parallel=False, virtual_stages=1, task="sft",
    **changes,
):  # fmt: skip
    from nemo_sdg.training.fit import fit

    return fit(
        task, settings, models=Models(dtype="fp64"), start=world / "base", rows=online(mesh, head, **changes), out=out,
        mesh=mesh, seed=5, on_step=on_step, sequence_parallel=sequence_parallel, virtual_stages=virtual_stages,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(world, head, tmp_path_factory):
    out = tmp_path_factory.mktemp("online") / "alone"
    return run_ranks(train, world, head, out)[0], run_ranks(weights, out)[0], out


def rows(out, step):
    return json.loads((out / "online" / f"step-{step:08d}.json").read_text())["rows"]


def test_what_it_learned_from_is_told(alone):
    result, _, out = alone
    assert [one["step"] for one in result["online"]] == [0, 2, 4]
    assert 48 * 20 < result["tokens"] < 48 * 40  # six steps of eight samples
    for one in result["online"]:
        made = rows(out, one["step"])
        kept = [row["prompt_id"] for row in made if row["kept"]]
        assert one["asked"] == 12 and one["scored"] == len(made) and one["kept"] == len(kept)
        assert set(kept) == {row["prompt_id"] for row in made} and len(set(kept)) == len(kept)  # the best of each
        for name, mean in one["mean"].items():
            assert mean == pytest.approx(np.mean([row["scores"][name] for row in made]))
    # Four of five prompts at a time, in turn.
    asked = [list(dict.fromkeys(row["prompt_id"] for row in rows(out, step))) for step in (0, 2, 4)]
    assert asked == [
        ["0:p0", "1:p1", "2:p2", "3:p3"], ["0:p4", "1:p0", "2:p1", "3:p2"], ["0:p3", "1:p4", "2:p0", "3:p1"]
    ]  # fmt: skip


def _answers(mesh, folder, step):
    """What a folder says to the prompts of an interval, generated in the ordinary way."""
    from nemo_sdg.engine.backends.local import LocalGenerator
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.engine.requests import Sampling

    model, tokenizer = load_model(folder, mesh, dtype="fp64")
    asked = [PROMPTS[i % 5] for i in range(step // EVERY * 4, step // EVERY * 4 + 4)]
    named = [Prompt(f"{i}:{prompt.id}", prompt.messages) for i, prompt in enumerate(asked)]
    generator = LocalGenerator(model, tokenizer, mesh, GENERATE, {})
    sampling = Sampling(max_tokens=6, temperature=1.0, seed=3, round=step)
    return {row.id: row.response for row in generator.generate(named, sampling, 3)}


def test_the_weights_that_train_are_those_that_generate(world, head, alone, tmp_path):
    """The answers before step 4 are those of the folder that a fit of four steps commits, not those of the start."""
    _, _, out = alone
    run_ranks(train, world, head, tmp_path / "four", replace(SETTINGS, steps=4))
    expected = run_ranks(_answers, tmp_path / "four", 4)[0]
    said = {row["id"]: row["response"] for row in rows(out, 4)}
    assert len(said) > 6 and said == {name: text for name, text in expected.items() if name in said}
    assert run_ranks(_answers, world / "base", 4)[0] != expected


GRIDS = {
    "TP2": dict(tp=2),
    "TP2, sequence parallel": dict(tp=2, sequence_parallel=True),
    "PP2": dict(pp=2),
    "DP2": dict(dp=2),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_topology_learns_the_same(world, head, alone, tmp_path, name):
    result, trained, out = alone
    grid = GRIDS[name]
    more = {"sequence_parallel": grid.get("sequence_parallel", False)}
    for found in run_ranks(lambda mesh: train(mesh, world, head, tmp_path / "out", **more), **grid):
        assert found["losses"] == pytest.approx(result["losses"], abs=1e-9)
    for step in (0, 2, 4):
        said = [[row["response"] for row in rows(folder, step)] for folder in (tmp_path / "out", out)]
        assert said[0] == said[1]
    for key, value in run_ranks(weights, tmp_path / "out")[0].items():
        np.testing.assert_allclose(value, trained[key], rtol=0, atol=1e-9, err_msg=key)


def _killed(mesh, world, head, out):
    def stop(step, loss):
        if step == 3:
            os._exit(0)  # as a kill would: nothing is tidied up

    train(mesh, world, head, out, replace(SETTINGS, restart_every=3), on_step=stop)


def test_a_killed_fit_learns_from_the_same_rows(world, head, alone, tmp_path):
    """Step 3 lies within an interval: its rows are those that were made before step 2."""
    result, trained, _ = alone
    with pytest.raises(AssertionError, match="rank 0 ended without a result"):
        run_ranks(_killed, world, head, tmp_path / "out", timeout_s=5)
    again = run_ranks(train, world, head, tmp_path / "out", replace(SETTINGS, restart_every=3))[0]
    assert {**again, "seconds": 0, "signature": ""} == {**result, "seconds": 0, "signature": ""}
    for key, value in run_ranks(weights, tmp_path / "out")[0].items():
        np.testing.assert_array_equal(value, trained[key], err_msg=key)


def _pairs_killed(mesh, world, head, out):
    def stop(step, loss):
        if step == 3:
            os._exit(0)

    train_pairs(mesh, world, head, out, replace(PAIRS, restart_every=3), on_step=stop)


def test_online_rpo_under_another_topology_and_after_a_kill(world, head, tmp_path):
    """Pairs of the policy's own answers against the start as reference, which a fit that goes on finds again."""
    alone = run_ranks(train_pairs, world, head, tmp_path / "alone")[0]
    assert len(alone["losses"]) == 6 and all(one["samples"] >= 1 for one in alone["online"])
    for found in run_ranks(train_pairs, world, head, tmp_path / "split", tp=2, pp=2):
        assert found["losses"] == pytest.approx(alone["losses"], abs=1e-9)
    with pytest.raises(AssertionError, match="rank 0 ended without a result"):
        run_ranks(_pairs_killed, world, head, tmp_path / "killed", timeout_s=5)
    again = run_ranks(train_pairs, world, head, tmp_path / "killed", replace(PAIRS, restart_every=3))[0]
    assert {**again, "seconds": 0, "signature": ""} == {**alone, "seconds": 0, "signature": ""}


def test_online_rpo_is_validated_against_its_reference(world, head, tmp_path):
    """Before anything is learned the policy is the reference; after two steps it is not."""
    settings = replace(PAIRS, steps=2, validate_every=1, learning_rate=1e-12)
    told = run_ranks(train_pairs, world, head, tmp_path / "out", settings, None, world / "pairs.jsonl", dp=2)[0]
    assert [one["step"] for one in told["validation"]] == [1, 2] and told["validation"][0]["pairs"] > 10
    same = run_ranks(_offline, world, tmp_path / "offline", settings)[0]
    assert told["validation"][0]["loss"] == pytest.approx(same["validation"][0]["loss"], rel=1e-6)


def _offline(mesh, world, out, settings):
    from nemo_sdg.training.fit import fit

    rows = world / "pairs.jsonl"
    return fit("preference", settings, models=Models(dtype="fp64"), start=world / "base", rows=rows, out=out, mesh=mesh,
               seed=5, validation=rows)  # fmt: skip


def test_a_pair_is_as_long_as_two_sequences(world, head, tmp_path):
    """Each of the two may have max_length tokens, as where the pairs come from a file."""
    all_of_them = run_ranks(train_pairs, world, head, tmp_path / "all", replace(PAIRS, steps=2))[0]
    short = run_ranks(train_pairs, world, head, tmp_path / "short", replace(PAIRS, steps=2, max_length=48))[0]
    assert short["online"][0]["samples"] == all_of_them["online"][0]["samples"]
    assert short["losses"] == all_of_them["losses"]


def _first_loss(mesh, world, head, out):
    """What the first step's loss must be: policy and reference are one, so the log-ratios are 0."""
    import math

    import torch

    from nemo_sdg.training.losses import rpo

    result = train_pairs(mesh, world, head, out, replace(PAIRS, steps=1, sft_weight=0.0))
    from nemo_sdg.training.online import OwnPairs
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.records import Decision

    made = [Decision.from_row(row) for row in rows(out, 0)]
    of_prompt = {row.prompt_id: [other for other in made if other.prompt_id == row.prompt_id] for row in made}
    teach = OwnPairs(PAIRS, Select(minimum={}, finished=False, unique=False))
    samples = [one for group in of_prompt.values() for one in teach(group, Tokenizer(world / "tokenizer.model"))]
    zero = torch.zeros(1, dtype=torch.float64)
    each = [rpo(zero, zero, zero, zero, *one.targets[:, None], beta=0.1, eta=1.0).item() for one in samples]
    assert not math.isclose(min(each), max(each))
    return result["losses"][0], each


def test_the_first_loss_of_online_rpo_is_known(world, head, tmp_path):
    loss, each = run_ranks(_first_loss, world, head, tmp_path / "out")[0]
    # Eight samples of the pairs that there are, in epochs of their own.
    assert min(each) <= loss <= max(each)
    if 8 % len(each) == 0:
        assert loss == pytest.approx(np.mean(each), abs=1e-12)


def _nothing_kept(mesh, world, head, out):
    from nemo_sdg.errors import UserError

    with pytest.raises(UserError) as caught:
        train(mesh, world, head, out, select=Select(minimum={"helpfulness": 1e6}, finished=False))
    return str(caught.value)


def test_nothing_to_learn_from(world, head, tmp_path):
    (message,) = run_ranks(_nothing_kept, world, head, tmp_path / "out")
    assert message.startswith("online training, step 0: there is nothing to learn from, found nothing in 10 scored answers")


def _refused(mesh, world, head, out):
    from nemo_sdg.training.online import OwnPairs

    messages = []
    changes = [dict(prompts=[]), dict(every=0), dict(prompts_at_once=0)]
    changes += [dict(settings=replace(SETTINGS, packed_sequence_size=256)), dict(virtual_stages=2)]
    pairs = OwnPairs(PAIRS, Select())
    changes += [dict(task="reward"), dict(teach=pairs), dict(task="preference", settings=PAIRS)]
    changes += [dict(task="preference", settings=PAIRS, teach=replace(pairs, preference=replace(PAIRS, judge="llm")))]
    for more in changes:
        with pytest.raises(ConfigError) as caught:
            train(mesh, world, head, out, **more)
        messages.append(str(caught.value))
    return messages


def test_what_cannot_be_is_refused_before_anything_else(world, head, tmp_path):
    prompts, every, at_once, packed, virtual, *rest = run_ranks(_refused, world, head, tmp_path / "out", pp=2)[0]
    reward, pairs, best, judge = rest
    assert reward.startswith("online: a reward model gives no answers to learn from, found reward")
    assert pairs == "online.teach: sft does not learn from these samples, found OwnPairs, expected best_answers"
    assert best == "online.teach: preference does not learn from these samples, found best_answers, expected OwnPairs"
    assert judge.startswith("online.teach.preference.judge: in the loop nobody is asked which of two is better, found llm")
    assert prompts == "online.prompts: there is nobody to answer, found no prompts, expected 1 or more"
    assert every == "online.every: it must be positive, found 0, expected 1 or more"
    assert at_once.startswith("online.prompts_at_once: it must be positive")
    assert packed.startswith("packed_sequence_size: a fit that learns in the loop does not pack")
    assert virtual.startswith("topology.virtual_stages: a policy in virtual stages cannot generate, found 2")
    assert not list(tmp_path.iterdir())


def _identities(mesh, head):
    import functools

    from nemo_sdg.training.online import best_answers

    def first(rows, tokenizer):
        return best_answers(rows[:1], tokenizer)

    one = online(mesh, head)
    answered = [replace(prompt, extra={"answer": "red"}) for prompt in PROMPTS]
    changed = [dict(prompts=answered), dict(teach=first), dict(teach=lambda rows, tokenizer: best_answers(rows[:2], tokenizer))]
    with pytest.raises(ConfigError, match="cannot be written down"):
        replace(one, teach=functools.partial(first, tokenizer=None)).identity
    return [one.identity, *(replace(one, **more).identity for more in changed)]


def test_another_right_answer_or_another_lesson_is_another_fit(head):
    """What one's own function does counts, not its name: and never where it lies in memory."""
    found, again = (run_ranks(_identities, head)[0] for _ in range(2))
    assert found == again and len({json.dumps(one) for one in found}) == 4


def _sampled(mesh, world, head, out):
    """The prompts and answers that a fit of rows of at most 33 tokens makes, and the tokens that it learns from."""
    generate = replace(GENERATE, stop=["e", "a"])
    result = train(mesh, world, head, out, replace(SETTINGS, steps=2, max_length=33), generate=generate, every=1)
    return result["online"], [rows(out, step) for step in (0, 1)]


def test_long_answers_are_left_out_and_stop_texts_hold(world, head, tmp_path):
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.training.samples import dialogue_sample

    told, made = run_ranks(_sampled, world, head, tmp_path / "out")[0]
    tokenizer, left_out = Tokenizer(world / "tokenizer.model"), 0
    for interval, some in zip(told, made, strict=True):
        kept = [[*row["messages"], {"role": "assistant", "content": row["response"]}] for row in some if row["kept"]]
        lengths = [dialogue_sample(messages, tokenizer).num_tokens for messages in kept]
        assert interval["samples"] == sum(length <= 33 for length in lengths) > 0
        assert interval["set_aside"] == {"longer than max_length": sum(length > 33 for length in lengths)}
        left_out += interval["set_aside"]["longer than max_length"]
        assert not [row for row in some if {"e", "a"} & set(row["response"])]
    assert left_out


class OddScorer:
    """One answer of each prompt has a score that is not finite, and verbosity it never gives."""

    identity = {"reward": "odd"}

    def score(self, responses):
        from nemo_sdg.records import Scored

        for row in responses:
            scores = {"helpfulness": float("nan") if row.sample == 0 else row.sample, "correctness": 1.0}
            yield Scored(**vars(row), scores=scores)


def _odd(mesh, world, head, out):
    from nemo_sdg.errors import RowError
    from nemo_sdg.training.online import best_answers

    def teach(rows, tokenizer):
        if rows[0].prompt_id.startswith("1:"):
            raise RowError("not for school", found=rows[0].id)
        return best_answers(rows, tokenizer)

    result = train(mesh, world, head, out, replace(SETTINGS, steps=2), scorer=OddScorer(), teach=teach)
    return result, rows(out, 0)


def test_scores_that_are_missing_or_not_finite_and_rows_that_teach_nothing(world, head, tmp_path):
    for result, made in run_ranks(_odd, world, head, tmp_path / "out", dp=2):
        (told,) = result["online"]
        given = [row["scores"]["helpfulness"] for row in made]
        assert None in given and not [row for row in made if row["kept"] and row["scores"]["helpfulness"] is None]
        assert told["mean"] == {"helpfulness": np.mean([x for x in given if x is not None]), "correctness": 1.0}
        assert told["set_aside"] == result["rows_set_aside"] == {"not for school": 1}


def _example(mesh, out):
    import contextlib
    import io
    import runpy
    import sys

    sys.argv = ["example", str(out), "2"]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        runpy.run_path(str(Path(__file__).parents[2] / "examples" / "03_learn_from_own_answers.py"), run_name="__main__")
    return told.getvalue()


def test_the_example(world, tmp_path):
    told = run_ranks(_example, tmp_path / "out")[0].splitlines()[-1]
    assert re.fullmatch(r"step 0: kept \d+ of 256, helpfulness \d\.\d\d", told)
    assert ModelFolder.open(tmp_path / "out").shape.num_layers == 4
