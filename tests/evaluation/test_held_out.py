"""Held-out measures on real ranks: answers that are known to be right count, and replicas share the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import make_folder, make_tokenizer, small_shape
from ranks import run_ranks

from nemo_sdg.config import ATTRIBUTES, Evaluate, RunConfig
from nemo_sdg.console import Console
from nemo_sdg.engine.backends.choosing import Role
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.evaluation import held_out
from nemo_sdg.quality.answers import last_line
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Labelled, Prompt, Response
from nemo_sdg.store import commit_rows

CONFIG = RunConfig(evaluate=Evaluate(max_tokens=6))
CONFIG.models.dtype = "fp64"


def local(kind: str, folder: Path) -> Role:
    return Role(kind, CONFIG, folder / kind, given=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two random models; prompts of which every other one has the answer that the model gives; rows with labels."""
    root = tmp_path_factory.mktemp("held-out")
    tokenizer = make_tokenizer(root / "t.model")
    make_folder(root / "policy", small_shape(), tokenizer)
    make_folder(root / "reward", small_shape(), tokenizer, reward=True)
    prompts = [
        Prompt(f"p{i}", ({"role": "user", "content": text},)) for i, text in enumerate("abc bca cab xyz".split())
    ]

    def ask(mesh: Mesh) -> list[str]:
        generator = local("policy", root).open(mesh)
        done = {row.prompt_id: row for row in generator.generate(prompts, Sampling(max_tokens=6, temperature=0), 1)}
        return [last_line(done[prompt.id].response) for prompt in prompts]

    answers = run_ranks(ask)[0]
    rows = [{**p.to_row(), "answer": answers[i] if i % 2 else "something else"} for i, p in enumerate(prompts)]
    rows += [{"id": "none", "prompt": "abc"}, {"id": "long", "prompt": "x y z " * 300, "answer": "1"}]
    commit_rows(root / "asked.jsonl", rows)
    labels = [{"prompt": "abc", "response": "a" * (i % 3 + 1), **dict.fromkeys(ATTRIBUTES, i % 5)} for i in range(10)]
    commit_rows(root / "labelled.jsonl", labels)
    return root


@pytest.mark.parametrize("topology", [{}, {"dp": 2}, {"tp": 2, "pp": 2}], ids=str)
def test_right_answers_count_on_every_rank(folder, topology):
    def measure(mesh: Mesh) -> dict:
        rows = str(folder / "asked.jsonl")
        return held_out.policy(local("policy", folder), rows, mesh, Console(speaks=False), "t")

    for result in run_ranks(measure, **topology):
        # Two of five are right: a prompt that does not fit gets no answer. The row without a right answer is set aside.
        assert result == {"exact_match": 0.4, "n": 5, "faulty": 1}


def test_agreement_is_the_same_on_one_rank_and_on_two_replicas(folder):
    def measure(mesh: Mesh) -> dict:
        rows = str(folder / "labelled.jsonl")
        return held_out.reward(local("reward", folder), rows, mesh, Console(speaks=False), "t")

    (one,), two = run_ranks(measure), run_ranks(measure, dp=2)
    assert two[0] == two[1] and list(one) == list(ATTRIBUTES)
    for name in ATTRIBUTES:
        assert one[name]["n"] == 10
        assert two[0][name] == pytest.approx(one[name], abs=1e-12)


def test_agreement_compares_each_row_with_its_own_label(folder):
    """Labels made of the model's own scores agree with them completely, whatever order replicas work in."""

    def scores(mesh: Mesh) -> list[dict]:
        scorer = local("reward", folder).open(mesh)
        rows = [
            Labelled.from_row(json.loads(line)) for line in (folder / "labelled.jsonl").read_text().splitlines()[:3]
        ]
        asked = [Response(str(i), str(i), 0, row.messages, row.response) for i, row in enumerate(rows)]
        return [row.scores for row in scorer.score(asked)]

    found = run_ranks(scores)[0]
    low, high = (f(s[name] for s in found for name in ATTRIBUTES) for f in (min, max))
    rows = [
        {"prompt": "abc", "response": "a" * (i + 1), **{k: 4 * (s[k] - low) / (high - low) for k in ATTRIBUTES}}
        for i, s in enumerate(found)
    ]
    commit_rows(folder / "own.jsonl", rows)

    def measure(mesh: Mesh) -> dict:
        return held_out.reward(local("reward", folder), str(folder / "own.jsonl"), mesh, Console(speaks=False), "t")

    for name, told in run_ranks(measure, dp=2)[0].items():
        assert told["pearson"] == pytest.approx(1) and told["spearman"] == pytest.approx(1), name
