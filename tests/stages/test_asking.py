"""Prompts that the policy makes, over a real HTTP server that a program answers for: what is asked, kept and counted."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from openai_server import serving
from ranks import run_ranks
from rounds import context, killed_after
from synthesis_world import reply

from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, RowError, StoreError, UserError
from nemo_sdg.records import Prompt
from nemo_sdg.stages import prompts
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run, StageStore
from nemo_sdg.store.verifying import check_entry
from nemo_sdg.store.waves import Part
from nemo_sdg.synthesis.plans import Plan
from nemo_sdg.synthesis.requirements import Requirement

KINDS = {"open_qa": 6, "two_turn": 4, "math": 3, "instruction_following": 5}


def answered(request: dict) -> dict:
    message = {"role": "assistant", "content": reply(request["messages"])}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice]}


@pytest.fixture
def server():
    with serving(answer=answered) as told:
        yield told


def made_for(folder: Path, server: SimpleNamespace, *words: str, kinds: dict | None = None, number: int = 0) -> Context:
    """A round whose prompts are made by the server's policy."""
    given = [f"data.synthesis.kinds.{name}={count}" for name, count in (kinds or KINDS).items()]
    where = context(
        folder, "generate.backend=endpoint", f"generate.endpoint.url={server.url}", "generate.endpoint.retries=0",
        "data.synthesis.brief=package:conf/briefs/finance.yaml", "data.synthesis.topics=4", "generate.group_size=2",
        *given, *words, number=number,
    )  # fmt: skip
    return dataclasses.replace(where, console=Console(speaks=False))


def files(where: Context) -> dict[str, bytes]:
    folder = where.folder / "prompts"
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def rows(where: Context) -> list[Prompt]:
    return [Prompt.from_row(row) for row in StageStore.finished(where.folder / "prompts").read()]


def asked(server: SimpleNamespace) -> Counter:
    return Counter(json.dumps([request["messages"], request["seed"]]) for request in server.asked)


def test_the_answers_are_verified_with_the_prompts(tmp_path, server):
    where = made_for(tmp_path, server, kinds={"open_qa": 2})
    prompts.run(where)
    assert check_entry(where.folder / "prompts") == []
    for file in sorted((where.folder / "prompts").glob("answers-*/*")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-2])
        assert any(str(file.parent) in problem for problem in check_entry(where.folder / "prompts"))
        file.unlink()
        assert any(str(file.parent) in problem for problem in check_entry(where.folder / "prompts"))
        file.write_bytes(whole)


def test_answers_that_are_lost_exchanged_or_added_as_a_whole_are_found(tmp_path, server):
    where = made_for(tmp_path, server, kinds={"open_qa": 2})
    prompts.run(where)
    folder = where.folder / "prompts"
    first, *others = sorted(folder.glob("answers-*"))
    assert others
    shutil.move(first, tmp_path / "away")
    (problem,) = check_entry(folder)
    assert f"{first}: the answers are not those of the finished stage, found nothing, expected " in problem
    shutil.copytree(others[0], first)
    assert f"{first / 'SUCCESS.json'}: the file was torn or altered" in "".join(check_entry(folder))
    shutil.rmtree(first)
    shutil.move(tmp_path / "away", first)
    assert check_entry(folder) == []
    other = made_for(tmp_path, server, "run.seed=5", kinds={"open_qa": 2}, number=1)
    prompts.run(other)
    shutil.copytree(first, tmp_path / "away")
    shutil.rmtree(first)
    shutil.copytree(other.folder / "prompts" / first.name, first)
    (problem,) = check_entry(folder)
    assert f"{first}: the answers are not those of the finished stage, found " in problem and "nothing" not in problem
    shutil.rmtree(first)
    shutil.move(tmp_path / "away", first)
    shutil.copytree(other.folder / "prompts" / first.name, folder / "answers-07")
    assert "answers-07: the answers are not those of the finished stage" in "".join(check_entry(folder))


def test_waves_that_make_the_same_prompts_give_them_ids_of_their_own(tmp_path, server):
    first = made_for(tmp_path, server)
    waves = [first.at(Part(wave)) for wave in range(3)]
    for where in waves:
        prompts.run(where)
    made = [prompt for where in waves for prompt in rows(where)]
    texts = {prompt.messages[-1]["content"] for prompt in made}
    assert len(texts) < len(made), "no prompt came twice: this shows nothing"
    assert len({prompt.id for prompt in made}) == len(made)


def test_every_kind_gets_its_prompts_and_everything_is_counted(tmp_path, server):
    where = made_for(tmp_path, server)
    totals = prompts.run(where)
    made = rows(where)
    by_kind = Counter(prompt.extra["kind"] for prompt in made)
    assert {name: totals["by_kind"][name]["made"] for name in KINDS} == by_kind
    assert all(by_kind[name] == KINDS[name] for name in ("open_qa", "two_turn", "math"))
    assert list(by_kind) == [name for name in ("open_qa", "math", "instruction_following", "two_turn") if by_kind[name]]
    assert {name: totals["by_kind"][name]["wanted"] for name in KINDS} == KINDS
    assert totals["kept"] == len(made) and totals["faulty"] == 0
    assert totals["rows_in"] == totals["kept"] + sum(totals["dropped"].values())
    assert totals["dropped"]["more than were wanted"] > 0
    levels = [StageStore.finished(folder) for folder in sorted((where.folder / "prompts").glob("answers-*"))]
    assert sum(level.rows for level in levels) == len(server.asked) == sum(asked(server).values())
    topics = levels[0].rows + levels[1].rows
    assert sum(kind["asked"] for kind in totals["by_kind"].values()) == len(server.asked) - topics
    for prompt in made:
        assert {"kind", "topic", "templates", "checks", "facts", "language"} <= set(prompt.extra)
        assert all(Requirement.from_row(check) for check in prompt.extra["checks"])


def test_a_finished_stage_asks_nothing_and_changes_nothing(tmp_path, server):
    where = made_for(tmp_path, server)
    totals, before, count = prompts.run(where), files(where), len(server.asked)
    assert prompts.run(where) == totals and files(where) == before and len(server.asked) == count


@pytest.mark.parametrize("last", (0, 9, 36))
def test_a_run_that_was_killed_goes_on_without_asking_twice(tmp_path, server, last, monkeypatch):
    """Killed when `last` groups were committed; one request at a time, so that nothing else is under way."""
    one = ("generate.endpoint.concurrency=1", "generate.group_size=1")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = made_for(tmp_path / "a", server, *one)
    prompts.run(whole)
    undisturbed, seen = files(whole), asked(server)
    server.asked.clear()
    where = made_for(tmp_path / "b", server, *one)
    with killed_after(monkeypatch, last):
        prompts.run(where)
    prompts.run(where)
    assert files(where) == undisturbed
    # What was answered and not yet committed is asked again, nothing else.
    assert seen <= asked(server) and asked(server).total() - seen.total() <= 2


def over_replicas(mesh, folder: Path, config: RunConfig) -> dict:
    with Run.open(folder, config, writer=mesh.writer) as run:
        return prompts.run(Context(config, run, 0, mesh, Console(speaks=False)))


def test_two_replicas_share_the_questions_and_make_the_same(tmp_path, server):
    alone = made_for(tmp_path, server)
    totals = prompts.run(alone)
    seen = asked(server)
    server.asked.clear()
    config = alone.config
    config.models.base = config.models.instruct = config.models.reward = "package:examples/tiny/base"
    assert run_ranks(over_replicas, tmp_path / "two", config, dp=2) == [totals, totals]
    assert asked(server) == seen
    other = dataclasses.replace(alone, run=Run(tmp_path / "two", config, True, None))
    assert files(other) == files(alone)


def test_another_seed_round_or_policy_setting_is_another_stage(tmp_path, server):
    small = {"math": 2}
    prompts.run(made_for(tmp_path, server, kinds=small))
    for word in ("run.seed=5", "data.synthesis.per_ask=3", "generate.temperature=0.5", "data.synthesis.max_tokens=9"):
        with pytest.raises(StoreError, match="made with another fingerprint"):
            prompts.run(made_for(tmp_path, server, word, kinds=small))
    for file in (tmp_path / "run/round-0/prompts").glob("*.json*"):  # as a run that was killed before its end
        file.unlink()
    with pytest.raises(StoreError, match="answers-00: the stage was made with another fingerprint"):
        prompts.run(made_for(tmp_path, server, "data.synthesis.max_tokens=9", kinds=small))
    assert prompts.run(made_for(tmp_path, server, "generate.endpoint.concurrency=1", "generate.samples=9", kinds=small))
    first, second = (made_for(tmp_path, server, kinds=small, number=number) for number in (0, 1))
    prompts.run(second)
    assert len({row.id for where in (first, second) for row in rows(where)}) == 4  # other levels are drawn
    assert len({request["seed"] for request in server.asked}) == len(server.asked)


def test_answers_are_as_long_as_the_setting_says(tmp_path, server):
    prompts.run(made_for(tmp_path, server, "data.synthesis.max_tokens=77", "generate.stop=[x]", kinds={"math": 1}))
    assert {request["max_tokens"] for request in server.asked} == {77}
    assert not any("stop" in request for request in server.asked)


def test_the_users_own_prompts_are_mixed_in_when_asked_for(tmp_path, server):
    where = made_for(tmp_path, server, "data.synthesis.own_prompts=true", kinds={"math": 2})
    totals = prompts.run(where)
    assert [row.id.split("-")[0] for row in rows(where)] == ["p", "math", "math"] and totals["kept"] == 3
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n{"no": 1}\n')
    later = made_for(tmp_path, server, "data.synthesis.own_prompts=true", kinds={"math": 2}, number=1)
    assert prompts.run(later)["faulty"] == 1 and (later.folder / "prompts/faulty.jsonl").read_text()
    count = len(server.asked)
    strict = made_for(tmp_path, server, "data.synthesis.own_prompts=true", "run.strict=true", number=2)
    with pytest.raises(RowError, match="prompts.jsonl:2: no single prompt"):
        prompts.run(strict)
    assert len(server.asked) == count


def test_answers_to_the_users_own_prompts_are_checked_as_those_to_made_ones(tmp_path, server):
    """The brief's checks come first, each once; what a row brings stays; a column that is none is left to the judge."""
    mine = {"line": "Be calm.", "reason": "must: Be calm.", "wanted": True, "question": "must"}
    (tmp_path / "prompts.jsonl").write_text("")
    where = made_for(tmp_path, server, "data.synthesis.own_prompts=true", kinds={"math": 2})
    brief = Plan.load(where.config.data.synthesis, seed=0, round=0).checks
    theirs = [check.to_row() for check in brief]
    given = [{"id": "a"}, {"id": "b", "checks": [mine, theirs[1]]}, {"id": "c", "checks": "none"}, {"id": "d", "checks": []}]
    text = "".join(json.dumps({"prompt": f"What of {row['id']}?", **row}) + "\n" for row in given)
    (tmp_path / "prompts.jsonl").write_text(text)
    prompts.run(where)
    *own, made, _ = rows(where)
    assert len(theirs) > 2 and made.extra["checks"][: len(theirs)] == theirs
    assert [row.extra["checks"] for row in own] == [theirs, [*theirs, mine], "none", theirs]
    assert [row.id for row in own] == ["a", "b", "c", "d"]


def test_prompts_of_an_earlier_run_may_be_given_again(tmp_path, server):
    """Their ids are those that the same conversations get when they are made once more."""
    first = made_for(tmp_path, server, kinds={"math": 2})
    prompts.run(first)
    made = [json.dumps(row) + "\n" for row in StageStore.finished(first.folder / "prompts").read()]
    again = made_for(tmp_path, server, "data.synthesis.own_prompts=true", kinds={"math": 2}, number=1)
    (tmp_path / "prompts.jsonl").write_text("".join(made))
    same = dataclasses.replace(again, round=0, run=Run(tmp_path / "again", again.config, True, None))
    totals = prompts.run(same)
    assert totals["dropped"]["one of the user's own"] == 2 and totals["kept"] == 2
    assert len({row.id for row in rows(same)}) == 2


def test_own_prompts_that_changed_do_not_enter_a_finished_stage(tmp_path, server):
    where = made_for(tmp_path, server, "data.synthesis.own_prompts=true", kinds={"math": 2})
    prompts.run(where)
    (tmp_path / "prompts.jsonl").write_text('{"id": "p", "prompt": "other"}\n')
    with pytest.raises(StoreError, match="another fingerprint"):
        prompts.run(where)


def test_a_question_that_the_server_refuses_is_left_out_with_a_reason_or_named_if_strict(tmp_path, server):
    usual = made_for(tmp_path, server, kinds={"math": 3})
    prompts.run(usual)
    keyword = rows(usual)[0].extra["facts"]["keyword"]
    server.refuse = {f"problem in which “{keyword}”": (400, "it is too long")}
    where = made_for(tmp_path, server, kinds={"math": 3}, number=1)
    totals = prompts.run(where)
    assert totals["dropped"]["no answer"] == 1
    assert totals["rows_in"] == totals["kept"] + sum(totals["dropped"].values())
    assert keyword not in [row.extra["facts"]["keyword"] for row in rows(where)] and totals["kept"] == 3
    with pytest.raises(RowError, match="row math/problem/"):
        prompts.run(made_for(tmp_path, server, "run.strict=true", kinds={"math": 3}, number=2))


def test_a_policy_that_gives_nothing_usable_is_said(tmp_path, server):
    server.answer = lambda request: {**answered(request), "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "I am sorry."}, "finish_reason": "stop", "logprobs": None}
    ]}  # fmt: skip
    where = made_for(tmp_path, server, kinds={"open_qa": 2})
    with pytest.raises(UserError, match="no prompt could be made, found 1 x no list in the answer"):
        prompts.run(where)
    assert not (where.folder / "prompts/SUCCESS.json").exists()


def test_a_mistake_in_the_users_files_is_said_before_anything_is_asked(tmp_path, server):
    brief = tmp_path / "brief.yaml"
    brief.write_text("field: x\ndescription: y\nlanguage: en\nfeild: z\n")
    with pytest.raises(ConfigError, match="unknown key 'feild'.*field"):
        prompts.run(made_for(tmp_path, server, f"data.synthesis.brief={brief}"))
    with pytest.raises(ConfigError, match="closed_qa asks about documents"):
        prompts.run(made_for(tmp_path, server, kinds={"closed_qa": 1}))
    assert server.asked == [] and not (tmp_path / "run").exists()
