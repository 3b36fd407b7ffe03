"""Rounds with a brief whose responses are judged: over HTTP with a target and revisions, and with a local judge on any ranks."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from openai_server import completion, serving
from ranks import run_ranks
from small_run import make_inputs, row_files, small_config
from stages.judge_world import brief_file, said
from stages.rounds import ALONE, context
from synthesis_world import reply

from nemo_sdg import fork, loop, tracing
from nemo_sdg import plan as planning
from nemo_sdg.config import Evaluate, Judge, Revise, RewardTraining, RunConfig, Select, Synthesis, Topology, Training, identity
from nemo_sdg.console import Console
from nemo_sdg.evaluation import report
from nemo_sdg.records import Decision
from nemo_sdg.store import Run, StageStore
from nemo_sdg.store.verifying import verify_run

MUST, MUST_NOT = "must: names the assumptions", "must not: gives a guarantee"
QUESTIONS = {"off topic": "belong to this field", MUST: "Requirement: names the assumptions", MUST_NOT: "Forbidden: gives a guarantee"}


def drawn(*texts: str) -> int:
    return hashlib.sha256("\0".join(texts).encode()).digest()[0]


def breaks(response: str) -> list[str]:
    """What the judge finds broken in a response; everything is well once it was revised."""
    found = [reason for reason in QUESTIONS if drawn(reason, response) % (8 if reason == "off topic" else 4) == 0]
    return [reason for reason in found if reason == "off topic" or "mended" not in response]


def answered(request: dict) -> dict:
    """Policy, reward model and judge of one server."""
    text = request["messages"][-1]["content"]
    if request["messages"][-1]["role"] == "assistant":
        return completion(request, "")
    compared = re.search(r"=== Response A ===\n(.*?)\n\n=== Response B ===\n(.*?)\n=== End ===", text, re.DOTALL)
    if compared is not None:
        first, second = compared.groups()
        return said(request, "A" if drawn(first) > drawn(second) else "B")
    asked = re.search(r"=== Response ===\n(.*?)\n=== End ===", text, re.DOTALL)
    if asked is not None:
        (reason,) = (reason for reason, words in QUESTIONS.items() if words in text)
        return said(request, "Yes." if (reason in breaks(asked[1])) == (reason == MUST_NOT) else "No.")
    if text.startswith("Please revise"):
        return said(request, f"It is mended: {drawn(text, str(request['seed']))}.")
    listed = reply(request["messages"])
    return said(request, listed if "\n1. " in listed else f"It is the answer {drawn(text, str(request['seed']))} to the case.")


def settings(folder: Path, url: str, *words: str) -> RunConfig:
    served = [f"{phase}.endpoint.url={url}" for phase in ("generate", "score")]
    served += ["generate.backend=endpoint", "score.backend=endpoint"]
    return context(
        folder, *served, f"data.synthesis.brief={brief_file(folder, 'en')}", "data.synthesis.kinds.open_qa=5",
        "data.synthesis.topics=2", "generate.samples=3", "generate.group_size=2", "run.rounds=1", "sft.enabled=false",
        "reward.enabled=false", "select.minimum={}", "select.unique=false", "revise.passes=1", "select.target=20",
        "preference.judge=llm", *words,
    ).config  # fmt: skip


def do(config: RunConfig, out: Path) -> str:
    stream = io.StringIO()
    with Run.open(out, config, writer=True) as opened:
        loop.run(config, opened, ALONE, Console(stream))
    return stream.getvalue()


@pytest.fixture(scope="module")
def server():
    with serving(answer=answered) as told:
        yield told


@pytest.fixture(scope="module")
def finished(tmp_path_factory, server) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    do(settings(folder, server.url), folder / "judged")
    return folder / "judged"


def rows(place: Path) -> list[dict]:
    return list(StageStore.finished(place).read())


def decisions(out: Path) -> list[Decision]:
    return [Decision.from_row(row) for row in rows(out / "round-0/decisions")]


def test_what_breaks_a_check_is_dropped_mended_or_left(finished):
    made = decisions(finished)
    assert len([row for row in made if row.kept]) == 20
    assert any(row.provenance.get("wave") for row in made), "one wave was enough, so this shows nothing"
    for row in made:
        assert row.extra["broken"] == breaks(row.response), row.id
        assert not row.kept or row.extra["broken"] == []
    reasons = Counter(row.reason for row in made)
    assert {"off topic", "another version of it is better"} <= set(reasons)
    revised = [row for row in made if "root" in row.provenance]
    by_id = {row.id: row for row in made}
    assert revised and any(row.kept for row in revised)
    for row in revised:
        broken = by_id[row.provenance["root"]].extra["broken"]
        assert broken and "off topic" not in broken
    asked_again = rows(finished / "round-0/revise-1/prompts")
    assert all("- must" in row["messages"][2]["content"] for row in asked_again)
    (won,) = StageStore.finished(finished / "round-0/decisions").totals["revised"]
    assert won["accepted"] == won["asked"] - sum("off topic" in row.extra["broken"] for row in revised)


def test_the_judge_makes_the_pairs(finished):
    made = rows(finished / "round-0/compared")
    assert made and all(row["better"] for row in made), "this judge is sure of itself"
    texts = {row.id: row.response for row in decisions(finished)}
    for row in made:
        high, low = row["id"].split(">")
        assert row["better"] == max((high, low), key=lambda name: drawn(texts[name]))
    lines = (finished / "round-0/datasets/preference.jsonl").read_text().splitlines()
    assert 0 < len(lines) <= len(made)


def test_a_finished_run_is_verified_traced_reported_and_asks_nothing_more(finished, server, capsys):
    count, before = len(server.asked), row_files(finished)
    config = settings(finished.parent, server.url)
    do(config, finished)
    assert len(server.asked) == count and row_files(finished) == before
    stream = io.StringIO()
    assert verify_run(finished, Console(stream)) == [] and "not of this run" not in stream.getvalue()
    kept = next(row for row in decisions(finished) if row.kept and "root" in row.provenance)
    assert tracing.verify_row(finished, kept.id) == 0
    told = capsys.readouterr().out
    assert "broken    none" in told and "judge endpoint:policy" in told
    pair = yaml.safe_load((finished / "round-0/datasets/preference.jsonl").read_text().splitlines()[0])["id"]
    assert tracing.verify_row(finished, pair) == 0
    stages = [row.stage for row in report.read(finished).rows]
    for name in ("judge", "judge, wave 1, revision 1", "compare"):
        assert name in stages, name
    card = (finished / "round-0/datasets/README.md").read_text()
    assert "| judged |" in card and "| judge | endpoint:policy |" in card


def test_an_altered_verdict_is_found(finished, capsys):
    kept = next(row for row in decisions(finished) if row.kept and not row.provenance.get("wave"))
    place = finished / "round-0" / ("revise-1/judged" if "root" in kept.provenance else "judged")
    part = next(file for file in place.glob("part-*") if f'"{kept.id}"' in file.read_text())
    whole = part.read_bytes()
    part.write_bytes(whole.replace(b'"broken":[]', b'"broken":["x"]', 1))
    (problem,) = verify_run(finished, Console(io.StringIO()))
    part.write_bytes(whole)
    assert part.name in problem


@pytest.mark.parametrize(
    ("words", "reused"),
    [
        ([], {"prompts", "responses", "scored", "judged", "decisions", "compared", "datasets"}),
        (["judge.max_tokens=9"], {"prompts", "responses", "scored"}),
        (["models.judge=other"], {"prompts", "responses", "scored"}),
        (["select.checks=false"], {"prompts", "responses", "scored"}),
        (["select.unique=true"], {"prompts", "responses", "scored", "judged"}),
        (["preference.per_prompt=2"], {"prompts", "responses", "scored", "judged", "decisions"}),
        (["preference.judge=reward"], {"prompts", "responses", "scored", "judged", "decisions"}),
        (["judge.endpoint.concurrency=2"], {"prompts", "responses", "scored", "judged", "decisions", "compared", "datasets"}),
    ],
)  # fmt: skip
def test_what_a_change_leaves(finished, words, reused):
    before = fork.from_yaml(finished / "run.yaml")
    after = fork.load(str(finished / "run.yaml"), words)
    steps = [step for step in fork.plan(finished, before, after) if "/" not in step.name]
    assert {step.name for step in steps if step.reused} - {"evaluation.json"} == reused


def test_a_fork_without_checks_asks_no_judge_and_keeps_what_was_broken(finished, server, tmp_path):
    new, words = tmp_path / "new", ["select.checks=false", "revise.passes=0", "preference.judge=reward", "select.target=15"]
    count = len(server.asked)
    assert fork.fork(finished, new, words) == 0
    do(settings(finished.parent, server.url, *words), new)
    assert len(server.asked) == count and not (new / "round-0/judged").exists()
    assert any(breaks(row.response) for row in decisions(new) if row.kept)
    assert verify_run(new, Console(io.StringIO())) == []


# ---- a model of ours as the judge


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def local(inputs: Path) -> RunConfig:
    """Prompts of the user's own that carry checks, and the base model as the judge: it says neither yes nor no."""
    config = dataclasses.replace(small_config(inputs, rounds=1), sft=Training(enabled=False), reward=RewardTraining(enabled=False))
    config.models.dtype, config.models.judge, config.judge = "fp64", f"{inputs}/base", Judge(max_tokens=4)
    config.evaluate = Evaluate()
    config.data.prompts_per_round = 6
    config.select, config.revise = Select(minimum={}, unique=False), Revise()
    brief = brief_file(inputs, "en")
    config.data.synthesis = Synthesis(brief=str(brief), kinds={"math": 1.0}, topics=0, own_prompts=True, max_tokens=8)
    return config


def stages(mesh, config: RunConfig, out: Path) -> None:
    from stages.judge_world import checks

    from nemo_sdg.stages import generate, judge, score
    from nemo_sdg.stages.context import Context
    from nemo_sdg.parallel.phases import Phases
    from nemo_sdg.store import Group

    config = dataclasses.replace(config, topology=Topology(tp=mesh.tp, pp=mesh.pp, dp=mesh.dp))
    with Run.open(out, config, writer=mesh.writer) as opened:
        where = Context(config, opened, 0, mesh, Console(speaks=False), Phases.lay(config, mesh))

        def prompts() -> None:
            made = [{"id": f"p{n}", "messages": [{"role": "user", "content": f"q{n}"}], "checks": checks("en")} for n in range(5)]
            store = StageStore(where.folder / "prompts", "by hand", 5, 2)
            for group in store.missing():
                store.commit(Group(group.index, group.start, group.stop), made[group.start : group.stop])
            store.finish({"rows_in": 5, "kept": 5})

        where.on_writer(prompts)
        for stage in (generate, score, judge):
            stage.run(where)


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("local") / "run"
    run_ranks(stages, local(inputs), out)
    return out


def test_a_local_judge_is_asked_and_named(alone, inputs):
    totals = StageStore.finished(alone / "round-0/judged").totals
    made = rows(alone / "round-0/judged")
    assert totals["asked"] == 3 * len(made) > 0
    answers = rows(alone / "round-0/judged/answers")
    assert {row["provenance"]["judge"] for row in answers} == {row["provenance"]["judge"] for row in made}
    assert made[0]["provenance"]["judge"] != made[0]["provenance"]["policy"]
    assert max(len(row["response_token_ids"]) for row in answers) <= 4


@pytest.mark.parametrize("topology", [{"dp": 2}, {"tp": 2}, {"pp": 2}], ids=["dp2", "tp2", "pp2"])
def test_a_local_judge_says_the_same_on_any_ranks(alone, inputs, tmp_path, topology):
    run_ranks(stages, local(inputs), tmp_path / "run", **topology)
    assert row_files(tmp_path / "run") == row_files(alone)


def test_a_server_is_asked_by_one_rank_while_others_generate(inputs, server, tmp_path):
    config, count = local(inputs), len(server.asked)
    config.models.judge, config.judge = None, Judge(backend="endpoint")
    config.judge.endpoint.url = server.url
    run_ranks(stages, config, tmp_path / "run", tp=2)
    assert len(server.asked) - count == StageStore.finished(tmp_path / "run/round-0/judged").totals["asked"] > 0


def test_the_plan_tells_who_judges(inputs, server):
    config = local(inputs)
    plan = planning.make(config)
    assert [model.role for model in plan.models] == ["generate", "score", "judge"]
    assert f"the judge is {inputs}/base in every round; about responses it is asked whether they keep to the brief" in plan.notes
    config.models.judge = f"{inputs}/reward"
    with pytest.raises(Exception, match="reward"):
        planning.make(config)
    config.models.judge = None
    assert [model.role for model in planning.make(config).models] == ["generate", "score"]
    config.select.checks = False
    assert not any("judge" in note for note in planning.make(config).notes)
    config.preference.judge = "llm"
    assert any("which of two is better" in note for note in planning.make(config).notes)
    assert identity(config)["preference.judge"] == "llm"
