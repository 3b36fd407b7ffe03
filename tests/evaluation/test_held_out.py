"""Held-out measures on real ranks: right answers count, each row meets its own label, and replicas share the work."""

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
from nemo_sdg.evaluation import files, held_out, measures
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.quality.answers import last_line
from nemo_sdg.records import Labelled, Prompt, Response
from nemo_sdg.store import commit_rows

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
SILENT = Console(speaks=False)


def settings(**names: object) -> RunConfig:
    config = RunConfig(evaluate=Evaluate(max_tokens=6, **{name: str(path) for name, path in names.items()}))
    config.models.dtype = "fp64"
    return config


def local(kind: str, folder: Path, config: RunConfig | None = None) -> Role:
    return Role(kind, config or settings(), folder / kind, given=False)


def of_policy(mesh: Mesh, folder: Path, **names: object) -> dict:
    config = settings(**names)
    rows = files.read(config)
    return measures.of_policy(rows, held_out.answers(local("policy", folder, config), rows.prompts, mesh, SILENT, "t"))


def of_reward(mesh: Mesh, folder: Path, **names: object) -> dict:
    config = settings(**names)
    rows = files.read(config)
    groups = [measures.labelled(rows), measures.compared(rows)]
    return measures.of_reward(rows, config, *held_out.scores(local("reward", folder, config), groups, mesh, SILENT, "t"))


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
    rows += [{"id": "again", "prompt": "bca", "answer": answers[1]}]  # asked once, and counted as often as it stands there
    commit_rows(root / "asked.jsonl", rows)
    line = {"line": "l", "reason": "r", "wanted": True}
    checks = [
        [{**line, "spec": {"kind": "include", "texts": ["never said"]}}, {**line, "spec": {"kind": "no_comma"}}],
        [{**line, "spec": {"kind": "words", "relation": "at_most", "count": 99}}],
    ]
    asked = [{"prompt": text, "checks": rows} for text, rows in zip(("abc", "x y z " * 300), checks)]
    commit_rows(root / "checked.jsonl", asked)
    labels = [{"prompt": "abc", "response": "a" * (i % 3 + 1), **dict.fromkeys(ATTRIBUTES, i % 5)} for i in range(10)]
    labels += [{**labels[0], "prompt": "x y z " * 300}, {**labels[0], "verbosity": 5}]
    commit_rows(root / "labelled.jsonl", labels)
    return root


@pytest.mark.parametrize("topology", [{}, {"dp": 2}, {"tp": 2, "pp": 2}], ids=str)
def test_right_answers_count_on_every_rank(folder, topology):
    names = {"exact_match": folder / "asked.jsonl", "instructions": folder / "checked.jsonl"}
    for result in run_ranks(lambda mesh: of_policy(mesh, folder, **names), **topology):
        # Three of six are right: a prompt that does not fit gets no answer. The row without a right answer is set aside.
        told = result["policy"]
        assert (told["exact_match"], told["n"], told["faulty"]) == (0.5, 6, 1)
        # What got no answer follows nothing, although no word is not more than 99.
        told = result["instructions"]
        assert (told["prompts"], told["instructions"], told["prompt_strict"], told["prompt_loose"]) == (2, 3, 0.0, 0.0)
        assert told["instruction_strict"] in (0.0, 1 / 3)  # whether this model says a comma


def test_agreement_is_the_same_on_one_rank_and_on_two_replicas(folder):
    def measure(mesh: Mesh) -> dict:
        return of_reward(mesh, folder, helpsteer2=folder / "labelled.jsonl")

    (one,), two = run_ranks(measure), run_ranks(measure, dp=2)
    assert two[0] == two[1] and list(one["reward"]) == list(ATTRIBUTES)
    for name in ATTRIBUTES:
        assert one["reward"][name]["n"] == 10
        for key, value in one["reward"][name].items():
            assert two[0]["reward"][name][key] == pytest.approx(value, abs=1e-12) if key != "knots" else True
    assert one["reward_faulty"] == two[0]["reward_faulty"] == 2  # a label out of range, and a prompt that does not fit


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
    told = run_ranks(lambda mesh: of_reward(mesh, folder, helpsteer2=folder / "own.jsonl"), dp=2)[0]
    for name, one in told["reward"].items():
        assert one["pearson"] == pytest.approx(1) and one["spearman"] == pytest.approx(1), name


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """Rows of the tiny world's RewardBench, some of them planted: a tie, and two that no model can score."""
    path = tmp_path_factory.mktemp("bench") / "bench.jsonl"
    rows = [json.loads(line) for line in (TINY / "data" / "rewardbench.jsonl").read_text().splitlines()]
    planted = [
        {**rows[0], "rejected": rows[0]["chosen"]},  # a tie
        {**rows[1], "rejected": "a" * 5000},  # longer than the context
        {**rows[2], "chosen": "a <extra_id_1> b"},  # what the template cannot hold
    ]
    commit_rows(path, [*rows[::2], *planted, {**rows[3], "prompt": ""}])
    return path


def test_rewardbench_through_the_tiny_reward_model_is_the_same_on_one_rank_and_on_two(bench):
    def measure(mesh: Mesh) -> dict:
        return of_reward(mesh, TINY, rewardbench=bench)["rewardbench"]

    (one,), two = run_ranks(measure), run_ranks(measure, tp=2)
    assert two == [one, one]
    assert one["faulty"] == 3  # two without a score, one whose prompt is empty
    assert one["subsets"]["alpacaeval-easy"] == {"accuracy": 0.5, "n": 6}  # 3 of 3, and 0 of the 3 that were planted
    assert 0.6 < one["Overall"] < 0.95 and one["Safety"] == 1.0 and one["length_only"]["Overall"] < one["Overall"]


def test_the_scalar_is_weighed_by_the_settings(bench):
    """Preferring what is less helpful turns the table over."""

    def measure(mesh: Mesh) -> list[dict]:
        config = settings(rewardbench=bench)
        rows = files.read(config)
        group = measures.compared(rows)
        (scored,) = held_out.scores(local("reward", TINY, config), [group], mesh, SILENT, "t")
        told = []
        for weights in ({"helpfulness": 1.0}, {"helpfulness": -1.0}):
            config.evaluate.weights = weights
            told.append(measures.of_reward(rows, config, [], scored)["rewardbench"])
        return told

    ((good, bad),) = run_ranks(measure)
    for name, subset in good["subsets"].items():
        if name != "alpacaeval-easy":  # which has the tie
            assert subset["accuracy"] + bad["subsets"][name]["accuracy"] == pytest.approx(1)
