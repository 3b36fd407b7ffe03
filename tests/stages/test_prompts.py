"""Prompts: rounds take turns through the file, faulty lines are set aside and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rounds import context

from nemo_sdg.errors import StoreError, UserError
from nemo_sdg.records import Prompt
from nemo_sdg.stages import prompts
from nemo_sdg.store import StageStore

FIVE = [Prompt(str(i), ({"role": "user", "content": "x"},)) for i in range(5)]


def ids(number: int, per_round: int | None) -> str:
    return "".join(prompt.id for prompt in prompts.turn(FIVE, number, per_round))


def test_rounds_take_the_next_prompts_and_wrap_around():
    assert [ids(r, 2) for r in range(4)] == ["01", "23", "40", "12"]
    assert [ids(r, None) for r in range(2)] == ["01234", "01234"]
    assert ids(1, 9) == "01234"  # never one prompt twice in a wave


def test_a_prompt_that_comes_again_in_a_round_has_an_id_of_its_own():
    waves = [[prompt.id for prompt in prompts.turn(FIVE, 1, 3, wave)] for wave in range(4)]
    assert waves == [["3", "4", "0"], ["1", "2", "3~2"], ["4~2", "0~2", "1~2"], ["2~2", "3~3", "4~3"]]
    like = [Prompt(name, FIVE[0].messages) for name in ("a", "a~2", "a~", "b~~2", "b")]
    names = [prompt.id for wave in range(4) for prompt in prompts.turn(like, 0, None, wave)]
    assert len(set(names)) == len(names) == 20 and names[5] == "a~~~2"


def test_the_totals_account_for_every_line(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    lines = [{"id": i, "prompt": f"say {i}"} for i in range(5)]
    text = [json.dumps(line) for line in lines] + ["{", '{"id": 9}', json.dumps(lines[0])]
    file.write_text("\n".join(text))
    where = context(tmp_path, "data.prompts_per_round=2", "generate.group_size=1", number=1)
    totals = prompts.run(where)
    assert totals == {"rows_in": 8, "kept": 2, "dropped": {"left for another round": 3}, "faulty": 3}
    store = StageStore.finished(tmp_path / "run/round-1/prompts")
    assert [row["id"] for row in store.read()] == ["2", "3"] and len(store.groups) == 2
    faulty = [json.loads(line) for line in (store.dir / "faulty.jsonl").read_text().splitlines()]
    assert [(fault["file"], fault["line"]) for fault in faulty] == [(str(file), 6), (str(file), 7), (str(file), 8)]
    assert "broken JSON" in faulty[0]["reason"] and "stands in line 1" in faulty[2]["reason"]
    before = {f: f.stat().st_mtime_ns for f in store.dir.iterdir()}
    assert prompts.run(where) == totals
    assert before == {f: f.stat().st_mtime_ns for f in store.dir.iterdir()}  # a rerun does nothing


def test_a_file_without_a_usable_prompt_is_refused_and_nothing_is_written(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="no prompt can be used.*prompts.jsonl:1: .*no single prompt"):
        prompts.run(context(tmp_path))
    with pytest.raises(UserError, match="cannot read the rows"):
        prompts.run(context(tmp_path, f"data.prompts={tmp_path}/absent.jsonl"))
    assert not (tmp_path / "run").exists()


def test_changed_prompts_do_not_enter_a_finished_stage(tmp_path: Path):
    prompts.run(context(tmp_path))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "other"}\n')
    with pytest.raises(StoreError, match="another fingerprint"):
        prompts.run(context(tmp_path))
