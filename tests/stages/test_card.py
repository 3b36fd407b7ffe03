"""The folder that is handed on: others open it, its card tells what is in it, and no row's text can break the card."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from rounds import context, scored, write_stage, write_up_to_scored

from nemo_sdg import config as settings
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.records import Decision, Labelled, Pair, Response, read_rows
from nemo_sdg.resources import root
from nemo_sdg.stages import assemble, select
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, commit_rows
from nemo_sdg.training import samples
from nemo_sdg.training.tasks import TASKS

LABELS = dict(helpfulness=3, correctness=4, coherence=4, complexity=1, verbosity=0)
NASTY = "a | b ``` and ````\n---\n# Not a heading\n<script>alert(1)</script> \x1b[31m"


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Context:
    """A round with rows of every kind in both splits."""
    folder = tmp_path_factory.mktemp("round")
    commit_rows(folder / "hs.jsonl", [{"prompt": f"rate {i}", "response": "r", **LABELS} for i in range(20)])
    pairs = [{"prompt": f"judge {i}", "chosen": "a", "rejected": "b"} for i in range(20)]
    commit_rows(folder / "pairs.jsonl", pairs)
    commit_rows(folder / "held.jsonl", [{"id": i, "prompt": f"add {i}", "answer": "5"} for i in range(5)])
    rows = [scored(NASTY, 0, NASTY), scored(NASTY, 1, "6", helpfulness=1.0), scored(NASTY, 2, "7", verbosity=math.nan)]
    rows += [scored(f"add {i}", j, f"{j}", correctness=4.0 - 2 * j) for i in range(60) for j in range(2)]
    made = {"policy": "abc", "template": "instruct", "seed": 1, "round": 0}
    rows = [dataclasses.replace(row, extra={"answer": "1"}, provenance=made) for row in rows]
    words = [f"data.helpsteer2={folder}/hs.jsonl", f"data.preference={{{folder}/pairs.jsonl: 1}}"]
    words += [f"evaluate.exact_match={folder}/held.jsonl", "data.validation_share=0.3", "data.licence=cc-by-4.0"]
    where = context(folder, "select.minimum={helpfulness: 2}", *words)
    write_up_to_scored(where, rows)
    select.run(where)
    assemble.run(where)
    return where


def files(round_: Context) -> Path:
    return round_.folder / "datasets"


def totals(round_: Context) -> dict:
    return json.loads((files(round_) / "summary.json").read_bytes())["totals"]


def opened(round_: Context, tmp_path: Path, name: str) -> datasets.DatasetDict:
    return datasets.load_dataset(str(files(round_) / "hf"), name, cache_dir=str(tmp_path))


def test_datasets_opens_the_folder_by_the_names_in_its_card(round_, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert datasets.get_dataset_config_names(str(files(round_) / "hf")) == ["sft", "preference", "regression"]
    asked = {"sft": "messages", "preference": "prompt", "regression": "messages"}
    first_turns: dict[str, set[str]] = {"train": set(), "validation": set()}
    for name, kind in (("sft", "sft"), ("preference", "preference"), ("regression", "reward")):
        loaded = opened(round_, tmp_path, name)
        assert {split: loaded[split].num_rows for split in loaded} == totals(round_)[kind]["rows"]
        for split, rows in loaded.items():
            assert rows.num_rows > 0
            first_turns[split] |= {row[asked[name]][0]["content"] for row in rows}
    assert not first_turns["train"] & first_turns["validation"]
    assert not (first_turns["train"] | first_turns["validation"]) & {f"add {i}" for i in range(5)}, "held out"
    row = opened(round_, tmp_path, "preference")["train"][0]
    assert [row[key][-1]["role"] for key in ("prompt", "chosen", "rejected")] == ["user", "assistant", "assistant"]
    assert row["judge"] == "verifier" and row["margin"] == row["score_chosen"] - row["score_rejected"] < 0
    spoken = opened(round_, tmp_path, "sft")["train"][0]["messages"]
    assert [turn["role"] for turn in spoken] == ["user", "assistant"]


def test_the_example_opens_it_too(round_, tmp_path):
    done = subprocess.run(
        [sys.executable, root() / "examples/02_open_the_datasets.py", files(round_)],
        capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    count = totals(round_)["preference"]["rows"]["validation"]
    assert f"preference, validation: {count} rows of id, prompt, chosen, rejected, score" in done.stdout, done.stderr
    assert f"\nUser: {NASTY}\nAssistant: {NASTY}\n" in done.stdout


def test_our_own_readers_open_all_of_it(round_):
    tokenizer = Tokenizer(root() / "examples/tiny/tokenizer.model")
    for kind in ("sft", "reward"):
        for split, file in (("train", f"{kind}.jsonl"), ("validation", f"validation/{kind}.jsonl")):
            read = samples.read(TASKS[kind].sample, files(round_) / file, tokenizer, 4096)
            assert len(read.rows) == totals(round_)[kind]["rows"][split] and not read.set_aside
    kinds = (("sft", "sft", Response), ("regression", "reward", Labelled), ("preference", "preference", Pair))
    for name, kind, shape in kinds:
        rows, faults = read_rows(files(round_) / "hf" / name, shape)
        assert len(rows) == sum(totals(round_)[kind]["rows"].values()) - len(faults)
        # A verifier may overrule the reward model; who reads pairs as people's word refuses these.
        assert all("higher score" in fault.reason for fault in faults) and (not faults or shape is Pair)


def test_the_card_tells_where_the_rows_come_from(round_):
    card = (files(round_) / "hf/README.md").read_text()
    assert card == (files(round_) / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and [one["config_name"] for one in front["configs"]][0] == "sft"
    told = totals(round_)["sft"]
    assert f"| sft | sft.jsonl | {told['rows']['train']} | {told['rows']['validation']} | {told['rows_in']} |" in card
    for line in (
        "| policy | abc | 123 |", "| reward | r | 123 |", "| template | instruct | 123 |",
        "| prompts | 61 | 61 | none | none |",
        "| decisions | 123 | 121 | helpfulness below 2: 1; score not finite: 1 | none |",
        "| from 1 to 1.5 | 0 / 1 |", "a verifier overrules the reward model",
        f"* HelpSteer2: `{round_.config.data.helpsteer2}`", "nemo-sdg run settings.yaml run.rounds=1 sft.enabled=false reward.enabled=false --out NEW",
    ):  # fmt: skip
        assert line in card, line
    assert str(round_.run.out) not in card


def test_the_card_tells_variety_and_likeness_before_and_after_selection(tmp_path):
    real = tmp_path / "real.jsonl"
    commit_rows(real, [{"prompt": f"add {i}", "response": f"the sum is {i}"} for i in range(12)])
    where = context(tmp_path, "select.minimum={helpfulness: 2}", f"select.likeness={real}")
    kinds = ("math", "open_qa")
    rows = [scored(f"add {i}", 0, f"the sum is {i} " * (1 + i % 2), helpfulness=4.0 - 3 * (i % 2)) for i in range(40)]
    rows = [dataclasses.replace(row, extra={"kind": kinds[i % 2]}) for i, row in enumerate(rows)]
    write_up_to_scored(where, rows)
    told = select.run(where)["variety"]
    assemble.run(where)
    card = (where.folder / "datasets/README.md").read_text()
    for line in (
        f"| distinct-2 | {told['before']['distinct_2']} | {told['after']['distinct_2']} |",
        f"| self-bleu | {told['before']['self_bleu']} | {told['after']['self_bleu']} |",
        "| kind math | 20 | 20 |", "| kind open_qa | 20 | 0 |", "| characters, least | 13 | 13 |",
        f"| AUC against real rows | {told['before']['auc']} | {told['after']['auc']} |", f"`{real}`", "copy one.",
    ):  # fmt: skip
        assert line in card, (line, card[card.index("## Variety") :][:1500])
    assert ("narrows variety" in card) == bool(told["narrowed"])


def test_the_card_names_the_brief_and_what_was_made_for_it(tmp_path):
    words = ["data.synthesis.brief=package:conf/briefs/finance.yaml", "data.synthesis.kinds={open_qa: 5, math: 2}"]
    where = context(tmp_path, "sft.enabled=false", "reward.enabled=false", *words)
    by_kind = {"open_qa": {"wanted": 5, "made": 4, "asked": 9}, "math": {"wanted": 2, "made": 2, "asked": 3}}
    StageStore(where.folder / "prompts", "by hand", 0, 3).finish({"rows_in": 0, "kept": 0, "by_kind": by_kind})
    write_stage(where, "decisions", [])
    assemble.run(where)
    card = (where.folder / "datasets/README.md").read_text()
    assert "for the brief `package:conf/briefs/finance.yaml`: open_qa 4 of 5 a wave, math 2 of 2 a wave" in card
    assert "* Prompts: " not in card


def test_the_settings_in_the_card_make_the_same_rows(round_, tmp_path):
    card = (files(round_) / "README.md").read_text()
    (tmp_path / "settings.yaml").write_text(re.search(r"```yaml\n(.*?)```", card, flags=re.DOTALL)[1])
    read = settings.load(str(tmp_path / "settings.yaml"), ["run.rounds=1"])
    assert settings.dataset_settings(read, 0) == settings.dataset_settings(round_.config, 0)


def test_no_text_can_leave_its_block(round_):
    card = (files(round_) / "README.md").read_text()
    outside, fence = [], None
    for line in card.split("---\n", 2)[2].splitlines():
        run = re.match("`{3,}", line)
        if fence is None:
            fence = run and run[0]
            outside += [] if run else [line]
        elif line == fence:
            fence = None
    assert fence is None and "script" not in "".join(outside) and "\x1b" not in card
    assert "Not a heading" in card, "the nasty row is among the examples"


def test_no_reason_can_leave_its_cell(tmp_path):
    where = context(tmp_path, "sft.enabled=false")
    reason = "a|b <i>`c`\nd"
    StageStore(where.folder / "prompts", "by hand", 0, 3).finish({"rows_in": 2, "kept": 0, "dropped": {reason: 2}})
    dropped = Decision(**vars(scored("a")), kept=False, reason="x", scalar=0.0)
    write_stage(where, "decisions", [dropped.to_row()])
    assemble.run(where)
    assert "| prompts | 2 | 0 | a\\|b &lt;i>'c' d: 2 | none |" in (where.folder / "datasets/README.md").read_text()


def test_a_card_without_rows_of_a_kind_names_no_such_dataset(tmp_path):
    where = context(tmp_path, "sft.enabled=false")
    write_up_to_scored(where, [scored("a", helpfulness=0.0)])
    select.run(where)
    assemble.run(where)
    front = yaml.safe_load((where.folder / "datasets/README.md").read_text().split("---\n")[1])
    assert [one["config_name"] for one in front["configs"]] == ["regression"]
    assert front["license"] == "unknown"
    assert sorted(path.name for path in (where.folder / "datasets/hf").iterdir()) == ["README.md", "regression"]
