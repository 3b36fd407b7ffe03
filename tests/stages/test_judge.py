"""The judge over a real HTTP server: what is asked, once for a response; what each row then says; and what comes of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from judge_world import PLANTED, answered, brief_file, checks, planted, round_of, row, said
from openai_server import serving
from ranks import run_ranks
from rounds import context, killed_after, scored, write_scored

from nemo_sdg import resources
from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.engine.backends.choosing import Role
from nemo_sdg.errors import ConfigError, RowError, StoreError
from nemo_sdg.records import Decision
from nemo_sdg.stages import judge, revise, select
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run, StageStore
from nemo_sdg.store.verifying import check_entry
from nemo_sdg.store.waves import Part
from nemo_sdg.synthesis.requirements import NOT_FOLLOWED, Requirement


@pytest.fixture
def server():
    with serving(answer=answered) as told:
        yield told


def files(where: Context) -> dict[str, bytes]:
    folder = where.folder / "judged"
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def rows(where: Context, name: str = "judged") -> list[dict]:
    return list(StageStore.finished(where.folder / name).read())


def asked(server: SimpleNamespace) -> Counter:
    return Counter(json.dumps(request["messages"], ensure_ascii=False) for request in server.asked)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_planted_responses_are_dropped_for_what_they_break(tmp_path, server, language):
    where = round_of(tmp_path, server.url, planted(language), "select.unique=false", language=language)
    totals = judge.run(where)
    broken = {one["response"]: one["broken"] for one in rows(where)}
    assert broken == PLANTED[language]
    assert totals["broken"] == Counter(reason for reasons in broken.values() for reason in reasons)
    assert totals["rows_in"] == totals["kept"] == len(broken) and not totals["unclear"]
    # Three questions about each: its subject, and the two lines that are no program.
    assert totals["asked"] == len(server.asked) == 3 * len(broken) and set(asked(server).values()) == {1}
    assert {(one["temperature"], one["max_tokens"]) for one in server.asked} == {(0.0, 64)}
    select.run(where)
    reasons = {one["response"]: one["reason"] for one in rows(where, "decisions")}
    assert reasons == {text: (found or [None])[0] for text, found in PLANTED[language].items()}


def test_the_responses_of_two_generators_are_judged(tmp_path, server):
    """Their groups of the same prompts follow one another."""
    where, given = context(tmp_path), planted("en")
    store = StageStore(where.folder / "scored", "made by hand", 4, 3, turns=2)
    for group, some in zip(store.groups, (given[:3], given[3:6], given[6:7], given[7:])):
        store.commit(group, [one.to_row() for one in some])
    store.finish({"rows_in": len(given), "kept": len(given)})
    where = round_of(tmp_path, server.url, [])
    assert judge.run(where)["asked"] == len(server.asked) == 3 * len(given)
    assert {one["response"]: one["broken"] for one in rows(where)} == PLANTED["en"]


def test_a_row_stays_what_it_was_and_says_who_judged_it(tmp_path, server):
    where = round_of(tmp_path, server.url, planted("en"))
    judge.run(where)
    for before, after in zip(rows(where, "scored"), rows(where)):
        assert after.pop("broken") is not None
        assert after.pop("provenance") == {**before.pop("provenance"), "judge": "endpoint:policy"}
        assert after == before


def test_a_finished_stage_asks_nothing_and_changes_nothing(tmp_path, server):
    where = round_of(tmp_path, server.url, planted("en"))
    totals, before, count = judge.run(where), files(where), len(server.asked)
    assert judge.run(where) == totals and files(where) == before and len(server.asked) == count


def test_an_answer_that_is_neither_yes_nor_no_is_counted_and_drops_nothing(tmp_path, server):
    where = round_of(tmp_path, server.url, [row(0, "Perhaps that is the rate of the loan."), row(1, "Perhaps the game of football.")])
    totals = judge.run(where)
    lines = ["must: names the assumptions", "must not: gives a guarantee"]
    assert totals["unclear"] == dict.fromkeys(lines, 2)
    first, second = rows(where)
    assert first["broken"] == [] and second["broken"] == ["off topic"] and first["unclear"] == second["unclear"] == lines
    assert select.run(where)["dropped"] == {"off topic": 1}


def test_a_question_that_the_server_refuses_is_unclear_or_named_if_strict(tmp_path, server):
    server.refuse = {"Forbidden: gives a guarantee": (400, "it is too long")}
    given = planted("en")[:1]
    where = round_of(tmp_path, server.url, given)
    totals = judge.run(where)
    assert totals["unclear"] == {"must not: gives a guarantee": 1} and rows(where)[0]["broken"] == []
    aside = StageStore.finished(where.folder / "judged/answers")
    assert sum(aside.totals["faulty"].values()) == 1 and aside.totals["kept"] == 2
    (tmp_path / "strict").mkdir()
    with pytest.raises(RowError, match="row question 0#0/2#0"):
        judge.run(round_of(tmp_path / "strict", server.url, given, "run.strict=true"))


def test_where_programs_decide_all_nobody_is_asked_and_nothing_is_loaded(tmp_path, server, monkeypatch):
    monkeypatch.setattr(Role, "open", lambda *a, **k: pytest.fail("the judge was opened"))
    programs = [check for check in checks("en") if "spec" in check]
    given = [dataclasses.replace(one, extra={"checks": programs}) for one in planted("en")]
    where = round_of(tmp_path, server.url, [*given, scored("of the user's own")])
    totals = judge.run(where)
    assert totals["asked"] == 0 and server.asked == []
    assert totals["broken"] == {
        "must: at most 12 words": 1, "must not: e-mail addresses": 1, "not in the language of the brief": 1
    }  # fmt: skip
    *checked, own = rows(where)
    assert "broken" not in own and all("judge" not in one["provenance"] for one in checked)


def test_nobody_is_asked_about_a_text_that_cannot_be_learned(tmp_path, server):
    where = round_of(tmp_path, server.url, [row(0, " "), row(1, "A <extra_id_1> of the loan."), planted("en")[0]])
    assert judge.run(where)["asked"] == len(server.asked) == 3
    assert select.run(where)["dropped"] == {"empty response": 1, "control piece in the response": 1}


def instructed(number: int, response: str, **columns: object):
    spec = {"kind": "words", "relation": "at_most", "count": 9}
    own = [Requirement("Use at most 9 words.", f"{NOT_FOLLOWED}: words", True, spec).to_row()]
    return row(number, response, **{"checks": own, **columns})


def test_verifiable_instructions_give_a_verdict_where_there_is_none_yet(tmp_path, server):
    short, long = "It is the rate of a loan.", "It is the rate of the loan that you have asked about."
    given = [instructed(0, short), instructed(1, long), instructed(2, long, correct=True), instructed(3, long, answer=long)]
    where = round_of(tmp_path, server.url, given)
    judge.run(where)
    made = rows(where)
    assert [one.get("correct") for one in made] == [True, False, True, None]
    assert [one["broken"] for one in made] == [[], *[[f"{NOT_FOLLOWED}: words"]] * 3]
    assert server.asked == []


def test_a_line_that_stands_twice_is_asked_once(tmp_path, server):
    twice = [*checks("en"), {**checks("en")[2], "reason": "must: once more"}]
    where = round_of(tmp_path, server.url, [row(0, "The rate of the loan is low.", checks=twice)])
    assert judge.run(where)["asked"] == len(server.asked) == 3
    assert rows(where)[0]["broken"] == ["must: names the assumptions", "must: once more"]


def test_what_an_earlier_judge_said_of_another_response_does_not_stay(tmp_path, server):
    stale = {"broken": ["off topic"], "unclear": ["x"]}
    own = dataclasses.replace(scored("own"), extra=dict(stale))
    where = round_of(tmp_path, server.url, [row(0, "We assume that the rate is fixed.", **stale), own])
    judge.run(where)
    first, second = rows(where)
    assert first["broken"] == [] and "unclear" not in first and not {"broken", "unclear"} & set(second)


def test_checks_that_are_none_are_set_aside_or_named_if_strict(tmp_path, server):
    given = [row(0, "We assume that the rate is fixed.", checks="none"), planted("en")[0], row(2, "It is.", checks=[{"line": 3}])]
    where = round_of(tmp_path, server.url, given)
    totals = judge.run(where)
    assert totals["faulty"] == {"the column checks is no list of checks": 1, "line is missing or of another type": 1}
    assert [one["id"] for one in rows(where)] == ["question 0#0"] and totals["asked"] == 3
    (tmp_path / "strict").mkdir()
    with pytest.raises(RowError, match="row question 0#0: the column checks is no list of checks"):
        judge.run(round_of(tmp_path / "strict", server.url, given, "run.strict=true"))


@pytest.mark.parametrize("last", (0, 1, 3, 5))
def test_a_run_that_was_killed_goes_on_without_asking_twice(tmp_path, server, last, monkeypatch):
    """Killed when `last` groups of answers or rows were committed; one request at a time, so that nothing else is under way."""
    one = "judge.endpoint.concurrency=1"
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = round_of(tmp_path / "a", server.url, planted("en"), one)
    judge.run(whole)
    undisturbed, seen = files(whole), asked(server)
    server.asked.clear()
    where = round_of(tmp_path / "b", server.url, planted("en"), one)

    with killed_after(monkeypatch, last):
        judge.run(where)
    judge.run(where)
    assert files(where) == undisturbed
    # Three groups of three rows each: the answers of the one that was under way are asked for again at most, and one more.
    assert set(seen) == set(asked(server)) and asked(server).total() - seen.total() <= 10


def over_replicas(mesh, folder: Path, config: RunConfig) -> dict:
    with Run.open(folder, config, writer=mesh.writer) as run:
        return judge.run(Context(config, run, 0, mesh, Console(speaks=False)))


def test_two_replicas_share_the_questions_and_make_the_same(tmp_path, server):
    alone = round_of(tmp_path, server.url, planted("en"))
    totals, seen = judge.run(alone), asked(server)
    server.asked.clear()
    config = alone.config
    config.models.base = config.models.instruct = config.models.reward = "package:examples/tiny/base"
    with Run.open(tmp_path / "two", config, writer=True) as run:
        write_scored(dataclasses.replace(alone, run=run), planted("en"))
    assert run_ranks(over_replicas, tmp_path / "two", config, dp=2) == [totals, totals]
    assert asked(server) == seen
    assert files(dataclasses.replace(alone, run=Run(tmp_path / "two", config, True, None))) == files(alone)


def test_another_brief_judge_limit_or_score_is_another_stage(tmp_path, server):
    judge.run(round_of(tmp_path, server.url, planted("en")))
    server.models = {"other": "x"}
    with pytest.raises(StoreError, match="judged/answers: the stage was made with another fingerprint"):
        judge.run(round_of(tmp_path, server.url, []))
    server.models = {"policy": "x"}
    with pytest.raises(StoreError, match="judged/answers: the stage was made with another fingerprint"):
        judge.run(round_of(tmp_path, server.url, [], "judge.max_tokens=65"))
    brief_file(tmp_path, "en")
    where = round_of(tmp_path, server.url, [])
    file = Path(where.config.data.synthesis.brief)
    file.write_text(file.read_text().replace("about loans", "about other loans"))
    with pytest.raises(StoreError, match="judged/answers: the stage was made with another fingerprint"):
        judge.run(where)

    where = round_of(tmp_path, server.url, [])
    shutil.rmtree(where.folder / "scored")
    write_scored(where, planted("en")[::-1])
    with pytest.raises(StoreError, match="judged/answers: the stage was made with another fingerprint"):
        judge.run(where)


@pytest.mark.parametrize("change", ["answers", "judge", "brief", "words"])
def test_verdicts_do_not_outlive_what_they_were_made_of(tmp_path, server, change):
    """The answers are deleted and asked for anew: others, of another judge, to other questions, or read by other words."""
    texts = Path(shutil.copytree(resources.root() / "conf/prompts", tmp_path / "texts"))
    where = round_of(tmp_path, server.url, planted("en")[:2], f"data.synthesis.templates={texts}")
    judge.run(where)
    shutil.rmtree(where.folder / "judged/answers")
    if change == "answers":
        server.answer = lambda request: said(request, "Yes.")
    elif change == "judge":
        server.models = {"other": "x"}
    else:
        file = Path(where.config.data.synthesis.brief) if change == "brief" else texts / "languages.yaml"
        file.write_text(file.read_text().replace("about loans", "about other loans").replace("correct, ", "correct, sure, "))
    with pytest.raises(StoreError, match="judged: the stage was made with another fingerprint"):
        judge.run(where)


def test_a_revision_is_asked_for_with_what_was_broken(tmp_path, server):
    given = planted("en")
    low = dataclasses.replace(given[0], id="low#0", scores={**given[0].scores, "helpfulness": 2.5})
    where = round_of(tmp_path, server.url, [*given, low], "revise.passes=1", "select.minimum.helpfulness=2.8")
    judge.run(where)
    totals = revise.run(where.at(Part(0, 1)))
    prompts = rows(where.at(Part(0, 1)), "prompts")
    # The good one has nothing to mend; where the subject is another nothing can be mended.
    assert totals["dropped"] == {"good enough": 1, "not to be mended by another answer": 2}
    told = {prompt["messages"][1]["content"]: prompt["messages"][2]["content"].splitlines()[1:-1] for prompt in prompts}
    expected = {
        text: [f"- {reason}" for reason in reasons]
        for text, reasons in PLANTED["en"].items() if reasons and "off topic" not in reasons
    }  # fmt: skip
    expected["金利は固定という前提です。"][0] = "- not in the language of the brief (language: English)"
    (mark,) = told.pop(given[0].response)
    assert told == expected and mark.startswith("- helpfulness: 2.5")
    assert not any({"broken", "unclear", "correct"} & set(prompt) for prompt in prompts)
    assert all(prompt["checks"] for prompt in prompts)


def test_without_checks_nothing_is_judged_and_selection_reads_the_scores(tmp_path, server):
    off = round_of(tmp_path, server.url, planted("en"), "select.checks=false")
    with pytest.raises(ConfigError, match="no checks to meet.*select.checks=true"):
        judge.run(off)
    assert select.run(off)["kept"] == len(PLANTED["en"]) and not (off.folder / "judged").exists()
    (tmp_path / "own").mkdir()
    own = context(tmp_path / "own")
    write_scored(own, [scored("x")])
    with pytest.raises(ConfigError, match="no checks to meet.*data.checks=true"):
        judge.run(own)
    assert select.run(dataclasses.replace(own, console=Console(speaks=False)))["kept"] == 1 and server.asked == []


def test_an_altered_answer_is_found(tmp_path, server):
    where = round_of(tmp_path, server.url, planted("en"))
    judge.run(where)
    assert check_entry(where.folder / "judged") == []
    part = next((where.folder / "judged/answers").glob("part-00001*"))
    part.write_bytes(part.read_bytes().replace(b"Yes", b"Yep"))
    (problem,) = check_entry(where.folder / "judged")
    assert part.name in problem
    shutil.rmtree(part.parent)
    (problem,) = check_entry(where.folder / "judged")
    assert f"{part.parent}: the answers are not those of the finished stage, found nothing" in problem


def test_without_a_judge_of_its_own_who_generates_first_is_asked(tmp_path, server):
    url = ("generate.backend=endpoint", f"generate.endpoint.url={server.url}", "judge.backend=local")
    where = round_of(tmp_path, server.url, planted("en"), *url)
    judge.run(where)
    assert len(server.asked) == 3 * len(PLANTED["en"])
    later = dataclasses.replace(where, round=1)
    trained = where.folder / "policy"
    trained.mkdir()
    role = later.judge()
    assert role.backend == "endpoint" and role.identity() == {"judge": "endpoint:policy"}
    local = dataclasses.replace(where, config=context(tmp_path).config, round=1)
    assert local.role("policy").model == trained and local.judge().model == "nowhere"


def kept(where: Context) -> list[Decision]:
    return [one for one in map(Decision.from_row, rows(where, "decisions")) if one.kept]


def test_the_models_own_words_are_what_is_read(tmp_path, server):
    """A judge that explains itself first has said neither yes nor no."""
    server.answer = lambda request: said(request, "Well, yes, it does.")
    where = round_of(tmp_path, server.url, planted("en")[:1])
    assert sum(judge.run(where)["unclear"].values()) == 3
    select.run(where)
    assert len(kept(where)) == 1
