"""Pairs that a language model judges, over a real HTTP server: both orders are asked, and only what it says twice counts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter

import pytest
from judge_world import said
from openai_server import serving
from rounds import context, killed_after, scored, write_scored, write_stage

from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, StoreError
from nemo_sdg.quality.pairs import INCONSISTENT, SILENT as SAYS_NOTHING, TIE
from nemo_sdg.stages import assemble, compare, select
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore

PROMPTS = ("clear", "tie", "position", "reversed", "silent", "half", "金利はいくらですか")


def judge(text: str) -> str:
    """Likes the response that says better; of the prompts, each makes it another judge."""
    question, first, second = re.search(
        r"=== (?:Conversation|会話) ===\n(.*?)\n\n=== (?:Response |回答)A ===\n(.*?)\n\n=== (?:Response |回答)B ===\n(.*?)\n===",
        text, re.DOTALL,
    ).groups()  # fmt: skip
    if question in ("clear", "reversed"):
        return "A" if "better" in first else "B, since it is better."
    if question == "half":
        return "Tie" if "better" in first else "B"
    if question == "金利はいくらですか":
        return "「A」です。" if "better" in first else "B。"
    return {"tie": "Tie.", "position": "A", "silent": "Hard to say."}[question]


@pytest.fixture
def server():
    with serving(answer=lambda request: said(request, judge(request["messages"][-1]["content"]))) as told:
        yield told


def round_of(folder, url: str, *words: str, choose: bool = True) -> Context:
    """Three responses to each prompt, all kept; the reward model likes the better one, but for one prompt."""
    where = context(
        folder, "preference.judge=llm", "judge.backend=endpoint", f"judge.endpoint.url={url}", "generate.group_size=2",
        "sft.enabled=false", "reward.enabled=false", *words,
    )  # fmt: skip
    where = dataclasses.replace(where, console=Console(speaks=False))
    if choose and not (where.folder / "scored").exists():
        rows = []
        for prompt in PROMPTS:
            marks = (3.0, 4.0, 3.5) if prompt != "reversed" else (4.0, 3.0, 3.5)
            texts = ("worse", "better", "between")
            rows += [scored(prompt, n, f"{text} {prompt}", helpfulness=mark) for n, (text, mark) in enumerate(zip(texts, marks))]
        asked = [{"id": prompt, "prompt": prompt} for prompt in PROMPTS]
        write_stage(where, "prompts", asked)
        write_scored(where, rows)
        select.run(where)
    return where


def files(where: Context) -> dict[str, bytes]:
    folder = where.folder / "compared"
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def asked(server) -> Counter:
    return Counter(request["messages"][0]["content"] for request in server.asked)


EXPECTED = {
    "clear": ("clear#1", None), "tie": (None, TIE), "position": (None, INCONSISTENT), "reversed": ("reversed#1", None),
    "silent": (None, SAYS_NOTHING), "half": (None, INCONSISTENT), "金利はいくらですか": ("金利はいくらですか#1", None),
}  # fmt: skip


def test_only_what_is_said_in_both_orders_counts(tmp_path, server):
    where = round_of(tmp_path, server.url)
    totals = compare.run(where)
    rows = list(StageStore.finished(where.folder / "compared").read())
    assert {row["id"].split("#")[0]: (row["better"], row["reason"]) for row in rows} == EXPECTED
    assert all(row["provenance"] == {"judge": "endpoint:policy"} for row in rows)
    assert totals == {
        "rows_in": 7, "kept": 3, "dropped": {INCONSISTENT: 2, TIE: 1, SAYS_NOTHING: 1}, "faulty": 0, "asked": 14
    }  # fmt: skip
    assert set(asked(server).values()) == {1} and len(server.asked) == 14
    assert not any("between" in text for text in asked(server)), "it is not among the two that differ most"
    assert sum("回答A" in text for text in asked(server)) == 2


def test_the_datasets_hold_the_judges_pairs_and_say_why_others_are_none(tmp_path, server):
    where = round_of(tmp_path, server.url)
    compare.run(where)
    totals = assemble.run(where)["preference"]
    assert totals["rows_in"] == 7 and totals["kept"] == totals["rows"]["train"] == 3
    assert totals["dropped"] == {INCONSISTENT: 2, TIE: 1, SAYS_NOTHING: 1}
    lines = [json.loads(line) for line in (where.folder / "datasets/preference.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"clear#1>clear#0", "reversed#1>reversed#0", "金利はいくらですか#1>金利はいくらですか#0"}
    overruled = next(line for line in lines if line["id"].startswith("reversed"))
    assert "better" in overruled["chosen_response"] and overruled["chosen_reward"] < overruled["rejected_reward"]
    card = (where.folder / "datasets/README.md").read_text()
    assert "| compared | 7 | 3 |" in card and "overrules" not in card


def test_a_finished_stage_asks_nothing_and_another_setting_is_another_stage(tmp_path, server):
    where = round_of(tmp_path, server.url)
    totals, before, count = compare.run(where), files(where), len(server.asked)
    assert compare.run(where) == totals and files(where) == before and len(server.asked) == count
    with pytest.raises(StoreError, match="compared/answers: the stage was made with another fingerprint"):
        compare.run(round_of(tmp_path, server.url, "preference.per_prompt=2"))


@pytest.mark.parametrize("last", (0, 1, 4, 6))
def test_a_run_that_was_killed_goes_on_without_asking_twice(tmp_path, server, last, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = round_of(tmp_path / "a", server.url, "judge.endpoint.concurrency=1")
    compare.run(whole)
    undisturbed, seen = files(whole), asked(server)
    server.asked.clear()
    where = round_of(tmp_path / "b", server.url, "judge.endpoint.concurrency=1")
    with killed_after(monkeypatch, last):
        compare.run(where)
    compare.run(where)
    assert files(where) == undisturbed
    assert set(seen) == set(asked(server)) and asked(server).total() - seen.total() <= 5  # a group of two prompts, and one more


def test_without_a_judge_of_pairs_there_is_nothing_to_compare(tmp_path, server):
    where = round_of(tmp_path, server.url, "preference.judge=reward", "preference.margin=0.1")
    with pytest.raises(ConfigError, match="nothing to compare.*preference.judge=llm"):
        compare.run(where)
    assert assemble.run(where)["preference"]["kept"] == len(PROMPTS) and server.asked == []


def test_pairs_that_nobody_has_compared_are_not_assembled(tmp_path, server):
    with pytest.raises(StoreError, match="compared: the stage is not finished"):
        assemble.run(round_of(tmp_path, server.url))
