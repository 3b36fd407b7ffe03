"""The guides and the README in Japanese: what they tell people to type exists, and what a CPU does in seconds is done."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import typed
from processes import forked
from ranks import run_ranks  # noqa: F401  (imports megatron once, before the verbs fork their ranks)
from typed import ROOT

from nemo_sdg import cli
from nemo_sdg.config import ATTRIBUTES

GUIDES = sorted((ROOT / "examples").glob("*.md"))
JAPANESE = ROOT / "README.ja.md"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (*GUIDES, JAPANESE)}
DOMAIN, REWARD = TEXTS["your_own_domain.md"], TEXTS["your_own_reward_model.md"]
OTHERS = {"cp", "cat", "head", "sed", "export", "vllm", "trtllm-serve", "prompts"}
"""What else a line of a block may begin with; the last is the picture of a round."""
TYPED = sorted(
    {(name, line) for name, text in TEXTS.items() for line in typed.commands(text) + typed.inline(text) if typed.verb_words(line)}
)


def test_there_are_guides_and_commands_to_check():
    assert len(GUIDES) == 5 and {name for name, _ in TYPED} == set(TEXTS) and len(TYPED) > 60


@pytest.mark.parametrize("name, line", TYPED)
def test_verbs_options_recipes_and_settings_exist(name, line, capsys):
    typed.check(line, capsys, forks=re.findall(r"nemo-sdg fork \w+ (\S+)", TEXTS[name]))


@pytest.mark.parametrize("name", TEXTS)
def test_no_other_line_of_a_block_goes_unseen(name):
    first = {line.split(" ")[0] for line in typed.lines(TEXTS[name])}
    assert first - {""} <= OTHERS | set(typed.OURS)


@pytest.mark.parametrize("name", TEXTS)
def test_settings_and_paths_exist(name):
    assert typed.unknown_settings(TEXTS[name]) == []
    assert [path for path in typed.paths(TEXTS[name]) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("readme", ["README.md", JAPANESE.name])
def test_both_readmes_name_every_guide_and_each_other(readme):
    text, (other,) = (ROOT / readme).read_text(encoding="utf-8"), {"README.md", JAPANESE.name} - {readme}
    assert f"]({other})" in text
    assert [guide.name for guide in GUIDES if f"`examples/{guide.name}`" not in text] == []


def test_every_verb_is_in_the_table_in_japanese():
    table = set(re.findall(r"^\| `nemo-sdg (\w+)", TEXTS[JAPANESE.name], flags=re.MULTILINE))
    assert table == {command.name or command.callback.__name__ for command in cli.app.registered_commands}


# ---- done as they stand


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to type in, with what the guides take from the repository; of the rows a few."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    tiny = tmp_path / "examples/tiny"
    (tiny / "data").mkdir(parents=True)
    for file in (ROOT / "examples/tiny/data").glob("*.jsonl"):
        rows = file.read_text().splitlines(keepends=True)
        some = rows[::3] if file.stem == "rewardbench" else rows[:24]  # two of each subset
        (tiny / "data" / file.name).write_text("".join(some))
    for model in ("base", "instruct", "reward"):
        (tiny / model).symlink_to(ROOT / "examples/tiny" / model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line_of(text: str, beginning: str) -> str:
    """The one line of the guide's blocks that begins so."""
    (line,) = [line for line in typed.lines(text) if line.startswith(beginning)]
    return line


def shell(line: str) -> None:
    subprocess.run(["bash", "-c", line], check=True, timeout=60)


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def said(capsys, line: str) -> str:
    """What a line of ours prints; it must go well."""
    capsys.readouterr()
    assert cli.main(typed.verb_words(line)) == 0, line
    return capsys.readouterr().out


def test_a_brief_is_planned_and_its_settings_are_told(place, capsys):
    shell(line_of(DOMAIN, "cp "))
    brief = place / "mine.yaml"
    plan = line_of(DOMAIN, "nemo-sdg plan minitron_4b")
    assert "300 prompts are made for mine.yaml, which takes at most" in said(capsys, plan)
    brief.write_text(brief.read_text().replace("tasks:", "taks:"))
    assert "the nearest valid key is tasks" in said(capsys, plan)
    assert "data.synthesis.piece_words = 1500" in said(capsys, line_of(DOMAIN, "nemo-sdg show"))


def test_prompts_with_checks_of_their_own_are_made_and_planned(place, capsys):
    shell(line_of(DOMAIN, "head "))
    rows = rows_of(place / "exercises.jsonl")
    assert len(rows) == 24 and all([check["reason"] for check in row["checks"]] == ["too long", "gives up"] for row in rows)
    told = said(capsys, line_of(DOMAIN, "nemo-sdg plan tiny"))
    assert "24 prompts, 96 responses" in told and "100 rows accepted in each round" in told and "whether they meet the checks" in told


def test_rows_are_selected_from_what_the_judge_has_left(place, capsys):
    folder = place / "exercises/round-0/judged"
    folder.mkdir(parents=True)
    good = {"prompt": "q", "scores": dict.fromkeys(ATTRIBUTES, 4.0), "finish_reason": "stop"}
    cases = {
        "kept": {"response": "one"}, "broken": {"response": "two", "broken": ["too long"]}, "same": {"response": "one"},
        "mail": {"response": "jane@example.com"}, "low": {"response": "three", "scores": {**good["scores"], "helpfulness": 3.1}},
    }  # fmt: skip
    rows = [json.dumps({**good, "id": name, **columns}) + "\n" for name, columns in cases.items()]
    (folder / "part-00000.jsonl").write_text("".join(rows[:3]))
    (folder / "part-00001.jsonl").write_text("".join(rows[3:]))
    shell(line_of(DOMAIN, "cat "))
    said(capsys, line_of(DOMAIN, "nemo-sdg select"))
    assert [row["id"] for row in rows_of(place / "kept.jsonl")] == ["kept"]
    reasons = {row["id"]: row["reason"] for row in rows_of(place / "kept.jsonl.dropped.jsonl")}
    assert reasons["broken"] == "too long" and reasons["low"] == "helpfulness below 3.2" and "EMAIL" in reasons["mail"]


def test_a_reward_model_is_measured(place):
    (place / "rm/start").mkdir(parents=True)
    (place / "rm/start/reward").symlink_to(ROOT / "examples/tiny/reward")
    words = typed.verb_words(line_of(REWARD, "nemo-sdg evaluate --reward rm/start/reward"))
    done = forked(lambda: cli.main(words))
    assert done.returncode == 0, done.stderr
    told = json.loads((place / "rm.json").read_text())
    bench = told["rewardbench"]
    assert told["reward"]["helpfulness"]["n"] == 24 and bench["Overall"] > bench["length_only"]["Overall"]
    assert {subset["n"] for subset in bench["subsets"].values()} == {2} and len(bench["subsets"]) == 23
    assert "calibrated mae" in done.stdout and "the longer one" in done.stdout


def test_a_label_of_ones_own_is_a_column(place):
    shell(line_of(REWARD, "sed "))
    rows = rows_of(place / "labelled.jsonl")
    assert len(rows) == 24 and all(row["curt"] == -row["verbosity"] for row in rows) and any(row["curt"] for row in rows)
