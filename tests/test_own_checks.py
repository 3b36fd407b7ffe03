"""Prompts of the user's own that bring checks, without a brief: from the file to the reason of a drop."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from openai_server import completion, serving
from stages import judge_world
from stages.judge_world import PLANTED, checks, said
from stages.rounds import ALONE, context

from nemo_sdg import fork, loop, tracing
from nemo_sdg import plan as planning
from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, RowError
from nemo_sdg.stages import prompts
from nemo_sdg.store import Run, StageStore
from nemo_sdg.store.verifying import verify_run
from nemo_sdg.synthesis.instructions import KINDS
from nemo_sdg.synthesis.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
GOOD = next(text for text, broken in PLANTED["en"].items() if not broken)


def answered(request: dict) -> dict:
    """A policy that says what it is told to, a reward model, and the judge of `judge_world`."""
    text = request["messages"][-1]["content"]
    if request["messages"][-1]["role"] == "assistant":
        return completion(request, "")
    if text.startswith("Please revise"):
        return said(request, GOOD)
    return said(request, judge_world.judge(text) or text.removeprefix("Say: "))


@pytest.fixture(scope="module")
def server():
    with serving(answer=answered) as told:
        yield told


def given(language: str = "en") -> list[dict]:
    """A prompt for each planted response, and one without checks."""
    rows = [
        {"id": f"p{number}", "prompt": f"Say: {response}", "checks": checks(language)}
        for number, response in enumerate(PLANTED[language])
    ]
    return [*rows, {"id": "free", "prompt": "Say: Football."}]


def settings(folder: Path, url: str, *words: str, rows: list[dict] | None = None) -> RunConfig:
    served = [f"{phase}.endpoint.url={url}" for phase in ("generate", "score")]
    served += ["generate.backend=endpoint", "score.backend=endpoint", "generate.samples=1", "generate.group_size=4"]
    served += ["run.rounds=1", "sft.enabled=false", "reward.enabled=false", "select.minimum={}"]
    return context(folder, *served, *words, prompts=rows or given()).config


def do(config: RunConfig, out: Path) -> str:
    stream = io.StringIO()
    with Run.open(out, config, writer=True) as opened:
        loop.run(config, opened, ALONE, Console(stream))
    return stream.getvalue()


def files(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def reasons(out: Path) -> dict[str, str | None]:
    return {row["response"]: row["reason"] for row in StageStore.finished(out / "round-0/decisions").read()}


@pytest.fixture(scope="module")
def checked(tmp_path_factory, server) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    assert "note" not in do(settings(folder, server.url, "data.checks=true"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory, server) -> Path:
    """A run of somebody who has forgotten the setting."""
    folder, count = tmp_path_factory.mktemp("unchecked"), len(server.asked)
    config = settings(folder, server.url)
    said = do(config, folder / "run")
    (note,) = [line for line in said.splitlines() if line.startswith("note: ")]
    assert note.removeprefix("note: ") in planning.make(config).notes
    rows = len(PLANTED["en"])
    assert f"{rows} of {rows + 1} rows read of {folder}/prompts.jsonl bring checks" in note
    assert "data.checks=true" in note
    assert len(server.asked) - count == 2 * (rows + 1), "each prompt is answered and scored, and nobody judges"
    assert set(reasons(folder / "run").values()) == {None} and not (folder / "run/round-0/judged").exists()
    return folder / "run"


def test_a_response_is_dropped_for_the_check_of_its_prompt(checked):
    expected = {text: (broken or [None])[0] for text, broken in PLANTED["en"].items()}
    assert reasons(checked) == {**expected, "Football.": None}
    totals = StageStore.finished(checked / "round-0/judged").totals
    # Its subject and two lines of each response that brings checks; the others are decided by programs.
    assert totals["asked"] == 3 * len(PLANTED["en"])
    assert totals["broken"] == Counter(reason for broken in PLANTED["en"].values() for reason in broken)
    learned = [json.loads(line) for line in (checked / "round-0/datasets/sft.jsonl").read_text().splitlines()]
    assert {row["conversations"][-1]["value"] for row in learned} == {GOOD, "Football."}


def test_the_judge_is_asked_in_the_language_of_the_settings(tmp_path, server):
    count = len(server.asked)
    config = settings(tmp_path, server.url, "data.checks=true", "judge.language=ja", rows=given("ja"))
    do(config, tmp_path / "run")
    expected = {text: (broken or [None])[0] for text, broken in PLANTED["ja"].items()}
    assert reasons(tmp_path / "run") == {**expected, "Football.": None}
    asked = [request["messages"][-1]["content"] for request in server.asked[count:]]
    assert sum("=== 回答 ===" in text for text in asked) == 3 * len(PLANTED["ja"])
    assert not any("=== Response ===" in text for text in asked)


def test_such_a_run_is_verified_and_traced(checked, capsys):
    stream = io.StringIO()
    assert verify_run(checked, Console(stream)) == [] and "not of this run" not in stream.getvalue()
    kept = next(row for row in StageStore.finished(checked / "round-0/decisions").read() if row["response"] == GOOD)
    assert tracing.verify_row(checked, kept["id"]) == 0
    assert "broken    none" in capsys.readouterr().out
    assert re.search(r"data.synthesis.templates: \w{16}", (checked / "run.yaml").read_text())


def test_who_forgot_the_setting_generates_nothing_again(unchecked, checked, server, tmp_path):
    count = len(server.asked)
    assert fork.fork(unchecked, tmp_path / "new", ["data.checks=true"]) == 0
    assert "note" not in do(fork.from_yaml(tmp_path / "new/run.yaml"), tmp_path / "new")
    asked = [request["messages"][-1]["content"] for request in server.asked[count:]]
    assert len(asked) == 3 * len(PLANTED["en"]) and all("=== Response ===" in text for text in asked)
    assert files(tmp_path / "new/round-0/judged") == files(checked / "round-0/judged")
    assert files(tmp_path / "new/round-0/decisions") == files(checked / "round-0/decisions")


@pytest.fixture(scope="module")
def revised(tmp_path_factory, server) -> Path:
    folder = tmp_path_factory.mktemp("revised")
    do(settings(folder, server.url, "data.checks=true", "revise.passes=1"), folder / "run")
    mended = [broken for broken in PLANTED["en"].values() if broken and "off topic" not in broken]
    assert list(reasons(folder / "run").values()).count("another version of it is better") == len(mended) > 3
    return folder / "run"


PARTS = ("prompts", "responses", "scored")


def left(run: Path, *words: str) -> set[str]:
    before, after = fork.from_yaml(run / "run.yaml"), fork.load(str(run / "run.yaml"), list(words))
    return {step.name for step in fork.plan(run, before, after) if step.reused}


def test_a_run_without_revisions_selects_again_when_nothing_is_checked_any_more(checked):
    assert "decisions" in left(checked) and "decisions" not in left(checked, "data.checks=false")


@pytest.mark.parametrize(
    ("words", "reused"),
    [
        ([], {*PARTS, "judged", "decisions", "datasets", "revise-1/prompts"}),
        (["data.checks=false"], set(PARTS)),
        (["select.checks=false"], set(PARTS)),
        (["judge.language=ja"], set(PARTS)),
        (["data.synthesis.templates=other"], set(PARTS)),
        (["select.per_prompt=3"], {*PARTS, "judged", "revise-1/prompts"}),
        (["data.synthesis.own_prompts=true", "data.synthesis.kinds.math=1", "data.synthesis.brief=x.yaml"], set()),
    ],
)  # fmt: skip
def test_what_a_change_leaves(revised, words, reused):
    follow = {f"revise-1/{name}" for name in ("responses", "scored", "judged")}
    assert left(revised, *words) - {"evaluation.json"} - follow == reused


# ---- what a user is told before anything is generated


def noted(folder: Path, rows: list[dict], *words: str) -> list[str]:
    """What the plan and the stage say of rows; they say the same."""
    folder.mkdir(exist_ok=True)
    where = context(folder, *SERVED, *words, prompts=rows)
    told: list[str] = []
    prompts.run(dataclasses.replace(where, console=Recorded(told)))
    in_plan = [note for note in planning.make(where.config).notes if "check" in note and "the judge is" not in note]
    assert [f"note: {note}" for note in in_plan] == told
    return in_plan


SERVED = ("generate.backend=endpoint", "score.backend=endpoint", "sft.enabled=false", "reward.enabled=false")
SERVED += ("run.rounds=2",)
SERVED += tuple(f"{phase}.endpoint.url=http://127.0.0.1:1/v1" for phase in ("generate", "score"))
NINE = {"kind": "words", "relation": "at_most", "count": 9}
ONE = {"line": "at most 9 words", "reason": "long", "wanted": True, "spec": NINE}


class Recorded:
    """A console whose lines are kept."""

    def __init__(self, lines: list[str]) -> None:
        self.say = lines.append


def row(number: int, checks: object = None) -> dict:
    return {"id": f"r{number}", "prompt": f"What of {number}?", **({} if checks is None else {"checks": checks})}


def test_only_what_does_not_fit_is_said(tmp_path):
    assert noted(tmp_path / "a", [row(0), row(1, [])]) == []
    assert noted(tmp_path / "b", [row(0), row(1, [ONE])], "data.checks=true") == []
    assert noted(tmp_path / "c", [row(0, [ONE])], "select.checks=false") == []
    (told,) = noted(tmp_path / "d", [row(0), row(1, [ONE]), row(2, [ONE])])
    assert told.startswith("2 of 3 rows read of ") and "select.checks=false" in told
    (told,) = noted(tmp_path / "e", [row(0), row(1, [])], "data.checks=true")
    assert told.startswith("data.checks=true, but none of 2 rows read of ")
    wrong = [row(0, [ONE]), row(1, [{**ONE, "wanted": "yes"}]), row(2, "short")]
    (told,) = noted(tmp_path / "f", wrong, "data.checks=true")
    assert told.startswith("2 of 3 rows read of ") and "row r1: wanted is missing or of another type" in told


def test_a_strict_run_refuses_checks_that_are_none(tmp_path):
    wrong = row(0, [{**ONE, "spec": {"kind": "word"}}])
    where = context(tmp_path, *SERVED, "data.checks=true", "run.strict=true", prompts=[wrong])
    for refuse in (lambda: prompts.run(where), lambda: planning.make(where.config)):
        with pytest.raises(RowError, match="row r0: unknown kind of instruction, found 'word'; the nearest is words"):
            refuse()
    assert not (tmp_path / "run").exists()


def test_a_language_without_questions_is_refused(tmp_path):
    where = context(tmp_path, *SERVED, "data.checks=true", "judge.language=xx", prompts=[row(0, [ONE])])
    for refuse in (lambda: prompts.run(where), lambda: planning.make(where.config)):
        with pytest.raises(ConfigError, match="no texts for this language, found xx, expected one of en, ja"):
            refuse()


def test_the_plan_looks_at_the_first_rows_and_the_run_at_all_once(tmp_path):
    where = context(tmp_path, *SERVED, prompts=[*(row(number) for number in range(1000)), row(1000, [ONE])])
    told: list[str] = []
    assert not any("bring checks" in note for note in planning.make(where.config).notes)
    for number in (0, 1):
        prompts.run(dataclasses.replace(where, console=Recorded(told), round=number))
    (line,) = told
    assert line.startswith("note: 1 of 1,001 rows read of ")


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.parquet"])
def test_checks_of_other_files_are_seen(tmp_path, name):
    """A table fills up each spec with the parameters of the others, as null."""
    keyword = {**ONE, "reason": "no word", "spec": {"kind": "include", "texts": ["rate"]}}
    rows, file = [row(0, [ONE, keyword]), row(1), row(2, [keyword])], tmp_path / name
    if name.endswith("gz"):
        file.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode()))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert noted(tmp_path, rows, "data.checks=true", f"data.prompts={file}") == []
    made = StageStore.finished(tmp_path / "run/round-0/prompts").read()
    specs = [[Requirement.from_row(check).spec for check in one.get("checks") or []] for one in made]
    assert specs == [[ONE["spec"], keyword["spec"]], [], [keyword["spec"]]]


def test_the_plan_says_what_the_judge_is_asked(tmp_path):
    where = context(tmp_path, *SERVED, "data.checks=true", prompts=[row(0, [ONE])])
    (told,) = [note for note in planning.make(where.config).notes if "the judge is" in note]
    assert told.endswith("about responses it is asked whether they meet the checks of their prompts")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["data.checks=true"], "data.checks: no row of data.prompts is read .*set data.synthesis.own_prompts=true"),
        (["judge.language=ja"], "judge.language: the brief has a language of its own, found ja"),
    ],
)
def test_beside_a_brief_settings_without_effect_are_refused(tmp_path, words, what):
    brief = ("data.synthesis.brief=package:conf/briefs/finance.yaml", "data.synthesis.kinds.math=1")
    with pytest.raises(ConfigError, match=what):
        context(tmp_path, *brief, *words)
    assert context(tmp_path, *brief, "data.checks=true", "data.synthesis.own_prompts=true").config.data.checks


def test_the_checks_in_the_readme_are_checks():
    readme = (ROOT / "README.md").read_text()
    (text,) = re.findall(r'^```\n(\{"prompt".*?)^```$', readme, flags=re.MULTILINE | re.DOTALL)
    program, question = [Requirement.from_row(check) for check in json.loads(text)["checks"]]
    assert program.holds("one " * 60) is True and program.holds("one " * 61) is False and program.spec["kind"] in KINDS
    assert question.holds("x") is None and not question.wanted
