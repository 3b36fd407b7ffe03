"""Local backends: what they yield, and that a generator is fed no more than it can use soon."""

from __future__ import annotations

import os
import signal

import pytest
from folders import make_folder, make_tokenizer, small_shape
from ranks import run_ranks

from nemo_sdg.checkpoints import reading
from nemo_sdg.config import Generate, Models, RunConfig
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.choosing import Role, sampling
from nemo_sdg.engine.residents import Residents
from nemo_sdg.errors import Stopped
from nemo_sdg.parallel import stopping
from nemo_sdg.parallel.mesh import lay
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.records import Prompt, Response, Scored

CONFIG = RunConfig(
    models=Models(dtype="fp64"), generate=Generate(samples=3, max_tokens=8, slots=4, prefill_tokens=64, logprobs=True)
)
PROMPTS = [Prompt(f"p{i}", ({"role": "user", "content": "abcdefgh"[i % 8]},), {"colour": i}) for i in range(20)]
LONG = Prompt("long", ({"role": "user", "content": "x y z " * 300},))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("local")
    tokenizer = make_tokenizer(root / "t.model")
    make_folder(root / "policy", small_shape(), tokenizer)
    make_folder(root / "other", small_shape(), tokenizer, seed=5)
    make_folder(root / "reward", small_shape(), tokenizer, reward=True)
    return root


def answered(mesh, world):
    """(rows by id in the order in which they came, most prompts that were taken and not yet answered)"""
    generator = Role("policy", CONFIG, world / "policy", given=False).open(mesh)
    taken = answered = most = 0

    def prompts():
        nonlocal taken, most
        for prompt in (*PROMPTS[:2], LONG, *PROMPTS[2:]):
            taken += 1
            most = max(most, 3 * taken - answered)
            yield prompt

    rows = []
    for row in generator.generate(prompts(), sampling(CONFIG), 3):
        answered += 1
        rows.append(row)
    generator.close()
    return rows, most


def test_rows_come_once_each_while_prompts_are_taken_as_slots_come_free(world):
    rows, most = run_ranks(answered, world)[0]
    assert sorted(row.id for row in rows) == sorted(f"{p.id}#{i}" for p in (*PROMPTS, LONG) for i in range(3))
    refused = [row for row in rows if isinstance(row, Refusal)]
    assert [row.id for row in refused] == ["long#0", "long#1", "long#2"]
    assert all("longer than the context" in str(row.error) for row in refused)
    assert most < 40, f"{most} of 63 rows were held at once"
    one = next(row for row in rows if row.id == "p3#1")
    assert isinstance(one, Response) and one.extra["colour"] == 3 and one.provenance == {}
    (logprobs,) = [value for name, value in one.extra.items() if "logprobs" in name]
    assert len(logprobs) == len(one.response_token_ids) and all(value <= 0 for value in logprobs)


def test_every_rank_of_a_replica_gets_the_same_rows_in_the_same_order(world):
    one = run_ranks(answered, world)[0][0]
    ranks = [rows for rows, _ in run_ranks(answered, world, tp=2, pp=2)]
    assert [[row.id for row in rows] for rows in ranks[1:]] == [[row.id for row in ranks[0]]] * 3
    texts = [{row.id: row.response for row in rows if isinstance(row, Response)} for rows in (one, *ranks)]
    assert all(text == texts[0] for text in texts) and len(texts[0]) == 60


def test_scores_are_those_of_the_group(world):
    rows = [Response(f"p{i}#0", f"p{i}", 0, PROMPTS[i].messages, "abc" * (i % 5 + 1)) for i in range(12)]

    def scored(mesh):
        scorer = Role("reward", CONFIG, world / "reward", given=False).open(mesh)
        whole = {row.id: row.scores for row in scorer.score([*rows, Response("l#0", "l", 0, LONG.messages, "a")])
                 if isinstance(row, Scored)}  # fmt: skip
        single = {row.id: row.scores for one in rows for row in scorer.score([one])}
        return whole, single

    whole, single = run_ranks(scored)[0]
    assert list(whole) == [row.id for row in rows] and whole == single  # fp64: packing changes no digit that is kept


def test_one_model_at_a_time_or_both(world):
    """In turn the one before makes room; together one of each kind stays, and the same one is not loaded twice."""

    def held(mesh, several):
        residents, kinds = Residents(several), {"dtype": None, "spec": "auto"}
        policy, _ = residents.take(world / "policy", mesh, reward=False, **kinds)
        residents.take(world / "reward", mesh, reward=True, **kinds)
        again, _ = residents.take(world / "policy", mesh, reward=False, **kinds)
        other, _ = residents.take(world / "other", mesh, reward=False, **kinds)
        once_more, _ = residents.take(world / "policy", mesh, reward=False, **kinds)
        residents.clear()
        after, _ = residents.take(world / "policy", mesh, reward=False, **kinds)
        return again is policy, other is policy, once_more is policy, after is once_more

    assert run_ranks(held, False)[0] == (False, False, False, False)
    assert run_ranks(held, True)[0] == (True, False, False, False)


def taken(mesh, world, tell):
    """The policy on both ranks, the reward model on the first one alone, and the policy again, in a run that may be told
    to stop: whether that gave it, on ranks of which one has kept it and one has not."""
    residents, kinds = Residents(False), {"dtype": None, "spec": "auto"}
    score = lay(Grid(tp=1, pp=1, dp=2), mesh)
    with stopping.listening():
        first, _ = residents.take(world / "policy", mesh, reward=False, **kinds)
        if mesh.rank == 0:
            residents.take(world / "reward", score, reward=True, **kinds)
        if mesh.rank == tell:
            os.kill(os.getpid(), signal.SIGTERM)
            reading._read_block = None  # nothing is read any more
        try:
            again, _ = residents.take(world / "policy", mesh, reward=False, **kinds)
        except Stopped:
            return "stopped"
    return "kept" if again is first else "loaded"


@pytest.mark.parametrize("tell, expected", [(None, ["loaded", "kept"]), (0, ["stopped"] * 2), (1, ["stopped"] * 2)])
def test_ranks_of_a_replica_of_which_one_holds_the_model_meet(world, tell, expected):
    assert run_ranks(taken, world, tell, tp=2, timeout_s=20) == expected
