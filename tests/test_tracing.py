"""`verify RUN --row`: any row of a dataset goes back to what made it, and what was changed on the way is found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from rounds import context, scored, write_stage, write_up_to_scored

from nemo_sdg import cli
from nemo_sdg.config import to_yaml
from nemo_sdg.records.reading import read_objects
from nemo_sdg.stages import assemble, select
from nemo_sdg.store import StageStore, commit_rows
from nemo_sdg.store.files import dump

LABELS = dict(helpfulness=3, correctness=4, coherence=4, complexity=1, verbosity=0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One round with generated rows, labelled rows, pairs of people, and a validation split."""
    commit_rows(tmp_path / "hs.jsonl", [{"prompt": f"rate {i}", "response": "r", **LABELS} for i in range(3)])
    commit_rows(tmp_path / "mine.jsonl", [{"prompt": "mine", "response": "r", **LABELS}])
    commit_rows(tmp_path / "pairs.jsonl", [{"prompt": "judge", "chosen": "a", "rejected": "b"}])
    both = [(f"say {i}", sample) for i in range(5) for sample in range(2)]
    rows = [scored(prompt, j, f"{j}", correctness=4.0 - 2 * j, helpfulness=3.1) for prompt, j in both]
    made = {"policy": "abc", "template": "instruct", "seed": 1, "round": 0}
    rows = [dataclasses.replace(row, extra={"topic": "sums"}, provenance=made) for row in rows]
    words = [f"data.helpsteer2={tmp_path}/hs.jsonl", f"data.labelled={{{tmp_path}/mine.jsonl: 2}}"]
    words += [f"data.preference={{{tmp_path}/pairs.jsonl: 1}}", "data.validation_share=0.3"]
    where = context(tmp_path, "select.minimum={helpfulness: 2}", *words)
    write_up_to_scored(where, rows)
    select.run(where)
    assemble.run(where)
    (where.run.out / "run.yaml").write_text(to_yaml(where.config))
    return where.run.out


def ids(run: Path) -> list[str]:
    files = sorted((run / "round-0/datasets").rglob("*.jsonl"))
    return [row["id"] for file in files if file.name != "faulty.jsonl" for _, row in read_objects(file)]


def verify(run: Path, name: str) -> int:
    return cli.main(["verify", str(run), "--row", name])


def test_every_row_of_every_file_is_what_its_sources_give(run, capsys):
    names = ids(run)
    assert {"say 0#0", "say 0#0>say 0#1", "helpsteer2:3", "labelled/0:1~2", "preference/0:1"} <= set(names)
    assert {verify(run, name) for name in dict.fromkeys(names)} == {0}
    assert capsys.readouterr().out.count("the same") == len(names)


def test_it_tells_who_made_the_row_and_why_it_was_kept(run, capsys):
    assert verify(run, "say 0#0>say 0#1") == 0
    told = capsys.readouterr().out
    for line in (
        "response  say 0#0", "response  say 0#1", "prompt    say 0 topic sums", "policy abc", "seed 1, round 0",
        "reward r", "helpfulness 3.1, correctness 2.0", "rule      kept, scalar", "formats   instruct",
        "preference.jsonl:",
    ):  # fmt: skip
        assert line in told, line
    assert verify(run, "labelled/0:1~2") == 0
    assert "mine.jsonl, row 1, weight 2" in capsys.readouterr().out


def altered(run: Path, file: str, old: str, new: str) -> None:
    path = run / "round-0/datasets" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_an_altered_row_is_found_with_the_place_and_both_values(run, capsys):
    places = ("sft.jsonl", "validation/sft.jsonl")
    file = next(place for place in places if '"say 3#1"' in (run / "round-0/datasets" / place).read_text())
    altered(run, file, '"id":"say 3#1","system":""', '"id":"say 3#1","system":"Lie."')
    assert verify(run, "say 3#1") == 1
    said = capsys.readouterr()
    assert f"round-0/datasets/{file}" in said.err and "line.system: found 'Lie.', expected ''" in said.err
    assert "differs" in said.out and "the same" in said.out  # the row of the reward model was left alone


def test_other_bytes_for_the_same_values_are_found(run, capsys):
    altered(run, "reward.jsonl", '"id":"helpsteer2:', '"id": "helpsteer2:')
    wrong = [name for name in ids(run) if name.startswith("helpsteer2") and verify(run, name)]
    assert wrong and "other bytes" in capsys.readouterr().err


def test_a_row_in_the_other_split_is_found(run, capsys):
    train, validation = (run / "round-0/datasets" / name for name in ("sft.jsonl", "validation/sft.jsonl"))
    data = train.read_bytes(), validation.read_bytes()
    train.write_bytes(data[1]), validation.write_bytes(data[0])
    name = json.loads(data[0].splitlines()[0])["id"]
    assert verify(run, name) == 1 and "split: found 'validation', expected 'train'" in capsys.readouterr().err


def remade(run: Path, stage: str, change) -> None:
    """The stage with changed rows, whole by its own digests: as if it had been made again."""
    folder = run / "round-0" / stage
    rows = [change(row) for row in StageStore.finished(folder).read()]
    for file in folder.iterdir():
        file.unlink()
    write_stage(of_round(run, 0), stage, rows)


def of_round(run: Path, number: int) -> SimpleNamespace:
    return SimpleNamespace(run=SimpleNamespace(round=lambda number: run / f"round-{number}"), round=number)


@pytest.mark.parametrize(
    "stage, change, said",
    [
        ("decisions", {"response": "lie"}, "scored.response: found 'lie', expected"),
        ("decisions", {"scores": dict.fromkeys(LABELS, 0.5)}, "scored.scores.verbosity: found '0.5', expected '4.0'"),
        ("scored", {"provenance": {"seed": 2}}, "scored.provenance.seed: found '1', expected '2'"),
        ("responses", {"finish_reason": "length"}, "responses.finish_reason: found 'stop', expected 'length'"),
        ("prompts", {"messages": [{"role": "user", "content": "other"}]}, "prompts.messages[0].content: found"),
        ("prompts", {"id": "other"}, "prompts: there is no row say 0"),
        ("responses", {"id": "other"}, "responses: there is no row say 0#0"),
        ("decisions", {"id": "other"}, "no decision of the round is of this id"),
    ],
)
def test_a_stage_that_says_something_else_is_found(run, capsys, stage, change, said):
    remade(run, stage, lambda row: {**row, **change})
    assert verify(run, "say 0#0") == 1
    assert said in capsys.readouterr().err


def test_what_the_sources_no_longer_give_is_found(run, tmp_path, capsys):
    commit_rows(tmp_path / "hs.jsonl", [{"prompt": "rate 0", "response": "s", **LABELS}])
    assert verify(run, "helpsteer2:1") == 1 and "line.text: found" in capsys.readouterr().err
    assert verify(run, "helpsteer2:2") == 1 and "row 2 is not there" in capsys.readouterr().err
    commit_rows(tmp_path / "pairs.jsonl", [{"prompt": "judge", "chosen": "a", "rejected": "a"}])
    assert verify(run, "preference/0:1") == 1 and "faulty: both answers are the same" in capsys.readouterr().err


def test_a_table_that_differs_from_the_lines_is_found(run, capsys):
    table = run / "round-0/datasets/hf/regression/train.parquet"
    table.unlink()
    assert verify(run, "labelled/0:1~2") == 1 and "regression/train.parquet: found 0 times" in capsys.readouterr().err


def test_another_prompt_format_than_then_is_told(run, capsys):
    altered(run, "summary.json", '"instruct": "', '"instruct": "0')
    assert verify(run, "say 0#0") == 1 and "prompt formats.instruct: found" in capsys.readouterr().err


def test_a_folder_beside_the_rounds_is_none_of_them(run, capsys):
    shutil.copytree(run / "round-0", run / "round-0.bak")
    assert verify(run, "say 0#0") == 0 and "round-0.bak" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"templates": 3}'])
def test_a_summary_that_says_nothing_is_one_sentence(run, text, capsys):
    (run / "round-0/datasets/summary.json").write_text(text)
    assert verify(run, "say 0#0") == 2 and "summary.json: the file was torn or altered" in capsys.readouterr().err


def test_what_is_not_there_is_one_sentence(run, tmp_path, capsys):
    assert verify(run, "say 99#0") == 2 and "no dataset of the run has this row" in capsys.readouterr().err
    assert verify(tmp_path, "say 0#0") == 2 and "the folder is no run" in capsys.readouterr().err
    part, sft = next((run / "round-0/scored").glob("part-00000-*")), run / "round-0/datasets/sft.jsonl"
    for file in (part, sft):
        whole = file.read_bytes()
        file.write_bytes(whole[:-5])
        assert verify(run, "say 0#0") == 2 and "torn or altered" in capsys.readouterr().err
        file.write_bytes(whole)


def test_the_same_id_in_two_rounds_is_two_rows(run, capsys):
    (run / "round-1/datasets").mkdir(parents=True)
    line = {"id": "say 0#0", "system": "", "mask": "User", "type": None, "conversations": []}
    (run / "round-1/datasets/sft.jsonl").write_bytes(dump(line))
    (run / "round-1/datasets/summary.json").write_text(json.dumps({"templates": {}}))
    write_stage(of_round(run, 1), "decisions", [])
    assert verify(run, "say 0#0") == 1
    said = capsys.readouterr()
    assert "round-0/datasets" in said.out and "round-1/datasets/sft.jsonl:1: no decision" in said.err


def test_a_response_that_selection_redacted_is_rebuilt_and_told(tmp_path, capsys):
    where = context(tmp_path, "select.minimum={helpfulness: 2}", "select.pii=redact")
    rows = [scored("say", j, f"{j}: write to ann{j}@example.org", correctness=4.0 - 2 * j) for j in range(2)]
    write_up_to_scored(where, [dataclasses.replace(row, response_token_ids=(1, 2)) for row in rows])
    select.run(where)
    assemble.run(where)
    out = where.run.out
    (out / "run.yaml").write_text(to_yaml(where.config))
    for name in ("say#0", "say#0>say#1"):
        assert verify(out, name) == 0, capsys.readouterr()
        said = capsys.readouterr().out
        assert "redacted  EMAIL 1: select.pii has rewritten the response" in said and "ann0@" not in said
    # What is not what redaction makes of it is still found.
    where.config.select.pii = "off"
    (out / "run.yaml").write_text(to_yaml(where.config))
    assert verify(out, "say#0") == 1
    assert "scored.response: found" in capsys.readouterr().err
