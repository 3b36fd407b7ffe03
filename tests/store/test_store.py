"""The store: what is listed is whole, whatever was killed, torn, altered or run twice."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from nemo_sdg.config import RunConfig, load, to_yaml
from nemo_sdg.config.evaluating import FILES
from nemo_sdg.errors import StoreError
from nemo_sdg.store import Group, Run, StageStore, commit_file, commit_folder, lock

ROWS, GROUP = 10, 4
INPUT = [{"id": i, "text": f"row {i} \u2028 \u00e4"} for i in range(ROWS)]


def settings(*words: str) -> RunConfig:
    """The tiny recipe with inputs that are not there: a store does not need them."""
    inputs = ("models.base", "models.instruct", "models.reward", "data.prompts", "data.helpsteer2")
    inputs += tuple(f"evaluate.{name}" for name in FILES)
    return load("tiny", [f"{key}=nowhere" for key in inputs] + list(words))


def store(folder: Path, **changes) -> StageStore:
    return StageStore(folder, **{"fingerprint": "aaaa", "rows": ROWS, "group_size": GROUP, **changes})


def run_stage(folder: Path) -> StageStore:
    """A stage as every stage does it: the missing groups, then SUCCESS."""
    stage = store(folder)
    for group in stage.missing():
        stage.commit(group, INPUT[group.start : group.stop])
    stage.finish({"rows_in": ROWS, "kept": ROWS})
    return stage


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_groups_follow_from_the_row_count_alone(tmp_path: Path):
    assert store(tmp_path).groups == [Group(0, 0, 4), Group(1, 4, 8), Group(2, 8, 10)]
    assert store(tmp_path, rows=0).groups == []


def test_a_stage_is_read_back_in_order_and_says_what_it_holds(tmp_path: Path):
    stage = run_stage(tmp_path / "s")
    assert list(stage.read()) == INPUT == list(StageStore.finished(tmp_path / "s").read())
    assert stage.done and stage.missing() == [] and stage.totals == {"rows_in": ROWS, "kept": ROWS}
    # Known answer: the name carries the SHA-256 of the compact UTF-8 lines, as written by hand here.
    lines = "".join('{"id":%d,"text":"row %d \u2028 \u00e4"}\n' % (i, i) for i in range(4)).encode()
    first, second, third = sorted(name for name in contents(tmp_path / "s") if name.startswith("part"))
    assert first == f"part-00000-n4-{hashlib.sha256(lines).hexdigest()[:16]}.jsonl"
    assert second.startswith("part-00001-n4-") and third.startswith("part-00002-n2-")


def test_groups_may_be_committed_in_any_order_and_twice(tmp_path: Path):
    run_stage(tmp_path / "a")
    stage = store(tmp_path / "b")
    for group in reversed(stage.groups):
        stage.commit(group, INPUT[group.start : group.stop])
        assert list(stage.committed()) == INPUT[group.start :]
    stage.commit(stage.groups[1], INPUT[4:8])
    stage.finish({"rows_in": ROWS, "kept": 7, "dropped": {"too short": 2}, "faulty": 1})
    parts = [{k: v for k, v in contents(tmp_path / x).items() if k.startswith("part")} for x in "ab"]
    assert parts[0] == parts[1]


def test_rows_lost_or_made_up_stop_the_stage(tmp_path: Path):
    stage = store(tmp_path)
    for group in stage.groups:
        stage.commit(group, INPUT[group.start : group.stop])
    for totals in ({"rows_in": 10, "kept": 9}, {"rows_in": 10, "kept": 9, "dropped": {"a": 1, "b": 1}}):
        with pytest.raises(AssertionError, match="lost or made up"):
            stage.finish(totals)
    assert not stage.done
    with pytest.raises(StoreError, match="not finished"):
        list(stage.read())


def test_a_stage_with_a_missing_group_cannot_finish(tmp_path: Path):
    stage = store(tmp_path)
    stage.commit(stage.groups[0], INPUT[:4])
    with pytest.raises(AssertionError, match="group 1 and 1 others"):
        stage.finish({"rows_in": 4, "kept": 4})


def test_nan_cannot_be_written(tmp_path: Path):
    with pytest.raises(ValueError):
        store(tmp_path).commit(Group(0, 0, 4), [{"score": math.nan}])
    assert not list(tmp_path.glob("part-*"))


@pytest.mark.parametrize("change", [{"fingerprint": "bbbb"}, {"rows": 11}, {"group_size": 5}])
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_stage_is_refused(tmp_path: Path, change: dict, finished: bool):
    if finished:
        run_stage(tmp_path)
        (tmp_path / "stage.json").unlink()
    else:
        store(tmp_path).commit(Group(0, 0, 4), INPUT[:4])
    with pytest.raises(StoreError, match=f"another {next(iter(change))}"):
        store(tmp_path, **change)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_an_altered_part_is_named_with_what_was_found_and_expected(tmp_path: Path, damage: str):
    stage = run_stage(tmp_path)
    part = sorted(tmp_path.glob("part-*"))[1]
    data = part.read_bytes()
    part.write_bytes({"cut": data[:-5], "flip": data.replace(b"row 5", b"row 6"), "empty": b""}[damage])
    for act in (stage.missing, lambda: stage.done, lambda: list(stage.read())):
        with pytest.raises(StoreError) as caught:
            act()
        message = str(caught.value)
        assert str(part) in message and "found SHA-256" in message and part.name.split("-")[3][:16] in message
        assert "delete this file and run again" in message
    part.unlink()
    assert not stage.done and [group.index for group in stage.missing()] == [1]
    with pytest.raises(StoreError, match="a part is missing"):
        list(stage.read())
    assert list(run_stage(tmp_path).read()) == INPUT and part.read_bytes() == data


def test_two_parts_for_one_group_are_named_and_never_merged(tmp_path: Path):
    stage = run_stage(tmp_path)
    with pytest.raises(StoreError, match="two different parts claim one group") as caught:
        stage.commit(stage.groups[0], INPUT[1:5])
    assert str(caught.value).count("part-00000") == 2
    other = store(tmp_path / "other")
    other.commit(Group(0, 0, 4), INPUT[1:5])
    extra = next((tmp_path / "other").glob("part-*"))
    extra.rename(tmp_path / extra.name)
    with pytest.raises(StoreError, match="two different parts"):
        stage.missing()


def test_each_group_costs_the_same_however_many_there_are(tmp_path: Path, monkeypatch):
    listings = []
    listing = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: listings.append(pattern) or listing(self, pattern))
    stage = StageStore(tmp_path / "stage", "f", 60, 1)
    for group in stage.groups:
        stage.set_aside(group, [])
        stage.commit(group, [{"a": group.index}])
    stage.finish({"rows_in": 60, "kept": 60})
    reader = StageStore.finished(tmp_path / "stage")
    assert [reader.rows_of(group) for group in reader.groups] == [[{"a": index}] for index in range(60)]
    assert 0 < len(listings) < 10


def test_a_part_is_seen_as_soon_as_another_process_has_made_it(tmp_path: Path):
    reader, writer = (StageStore(tmp_path, "f", 4, 2) for _ in range(2))
    for group in writer.groups:
        assert reader.part_of(group) is None
        writer.commit(group, [{"a": group.index}])
        assert reader.rows_of(group) == [{"a": group.index}]
    reader.part_of(reader.groups[0]).unlink()
    with pytest.raises(StoreError, match="a part is missing"):
        reader.rows_of(reader.groups[0])


def test_what_an_earlier_process_set_aside_of_a_group_goes(tmp_path: Path):
    for rows in ([{"reason": "x"}], []):
        store(tmp_path).set_aside(Group(0, 0, 4), rows)
    assert not list(tmp_path.glob("faulty-*"))
    store(tmp_path).commit(Group(0, 0, 4), INPUT[:4])
    with pytest.raises(StoreError, match="two different parts"):
        store(tmp_path).commit(Group(0, 0, 4), INPUT[1:5])


def test_a_strange_part_is_refused(tmp_path: Path):
    stage = run_stage(tmp_path)
    for name in ("part-00007-n1-0123456789abcdef.jsonl", "part-1.jsonl"):
        (tmp_path / name).write_bytes(b"{}\n")
        with pytest.raises(StoreError, match="not a part of this stage"):
            stage.missing()
        (tmp_path / name).unlink()


def test_rows_that_were_set_aside_are_named_like_parts_and_held_like_parts(tmp_path: Path):
    stage, reasons = store(tmp_path), [{"id": 3, "reason": "too long"}, {"id": 1, "reason": "too long"}]
    stage.set_aside(stage.groups[0], [{"id": 0, "reason": "of an attempt that was killed"}])
    stage.set_aside(stage.groups[0], reasons)
    stage.set_aside(stage.groups[1], [])
    (faulty,) = tmp_path.glob("faulty-*")
    assert faulty.name.startswith("faulty-00000-n2-") and stage.aside() == {"too long": 2}
    assert [json.loads(line) for line in faulty.read_text().splitlines()] == reasons
    for group in stage.groups:
        stage.commit(group, INPUT[group.start : group.stop])
    data = faulty.read_bytes()
    faulty.write_bytes(data.replace(b"3", b"4"))
    with pytest.raises(StoreError, match="torn or altered"):
        stage.aside()
    faulty.write_bytes(data)
    stage.finish({"rows_in": ROWS + 2, "kept": ROWS, "faulty": 2})
    assert stage.done and list(stage.problems()) == []
    for damage in (lambda: faulty.write_bytes(b""), faulty.unlink):
        damage()
        with pytest.raises(StoreError, match=f"{faulty.name}: the rows that were set aside are not those"):
            stage.done
        assert len(list(stage.problems())) == 1
    faulty.write_bytes(data)
    (tmp_path / "faulty-00002-n0-0123456789abcdef.jsonl").write_bytes(b"")
    with pytest.raises(StoreError, match="expected nothing"):
        stage.done


def test_a_torn_success_file_is_named(tmp_path: Path):
    run_stage(tmp_path)
    (tmp_path / "SUCCESS.json").write_bytes(b'{"fingerpr')
    with pytest.raises(StoreError, match="torn or altered"):
        store(tmp_path)


def test_commit_folder_is_all_or_nothing(tmp_path: Path):
    made = tmp_path / ".policy.tmp"
    made.mkdir()
    (made / "weights").write_bytes(b"x")
    commit_folder(made, tmp_path / "round-0" / "policy")
    assert (tmp_path / "round-0" / "policy" / "weights").read_bytes() == b"x" and not made.exists()
    made.mkdir()
    with pytest.raises(StoreError, match="there already"):
        commit_folder(made, tmp_path / "round-0" / "policy")


def test_commit_file_replaces_in_one_step_and_says_what_the_disk_said(tmp_path: Path):
    commit_file(tmp_path / "a", b"1" * 100)
    commit_file(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StoreError, match="cannot write"):
        commit_file(tmp_path / "a" / "b", b"")


def test_a_run_describes_itself_and_is_its_own_recipe(tmp_path: Path):
    config = settings("run.seed=7")
    with Run.open(tmp_path / "run", config, writer=True) as run:
        run.events("started", rounds=2)
        assert run.round(1) == tmp_path / "run" / "round-1"
    text = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert (tmp_path / "run" / "run.yaml").read_text().splitlines()[-1].startswith("# sha256 ")
    assert text["fingerprint"] == run.fingerprint and set(text) == {"fingerprint", "versions", "inputs", "config"}
    assert load(str(tmp_path / "run" / "run.yaml")) == config
    event = json.loads((tmp_path / "run" / "logs" / "events.jsonl").read_text())
    assert event["event"] == "started" and event["rounds"] == 2 and abs(event["time"] - time.time()) < 60


def test_a_run_of_another_config_lists_what_differs_and_is_not_touched(tmp_path: Path):
    Run.open(tmp_path, settings(), writer=True).close()
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    other = settings("run.seed=8", "select.maximum.verbosity=3", "topology.tp=2")
    with pytest.raises(StoreError) as caught:
        Run.open(tmp_path, other, writer=True)
    message = str(caught.value)
    assert (
        "run.seed (run: 1234, asked: 8)" in message and "select.maximum.verbosity (run: unset, asked: 3.0)" in message
    )
    assert "topology" not in message and "choose another --out" in message and "run.yaml --out" in message
    assert before == {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}


def test_a_run_may_go_on_elsewhere_and_for_longer(tmp_path: Path):
    Run.open(tmp_path, settings(), writer=True).close()
    longer = settings("run.rounds=5", "topology.tp=2")
    Run.open(tmp_path, longer, writer=True).close()
    assert load(str(tmp_path / "run.yaml")) == longer


def test_a_changed_input_is_refused_by_name(tmp_path: Path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    config = settings(f"data.prompts={prompts}")
    Run.open(tmp_path / "run", config, writer=True).close()
    Run.open(tmp_path / "run", config, writer=True).close()
    prompts.write_text('{"prompt": "y"}\n')
    with pytest.raises(StoreError, match="data.prompts is not what this run began with"):
        Run.open(tmp_path / "run", config, writer=True)
    prompts.unlink()
    with pytest.raises(StoreError, match="data.prompts is not what this run began with.*found nothing there"):
        Run.open(tmp_path / "run", config, writer=True)


def test_a_model_in_one_file_is_known_by_its_name_and_size(tmp_path: Path, monkeypatch):
    """As a folder is: reading 682 GB at each start would take hours."""
    model = tmp_path / "base.nemo"
    model.write_bytes(b"x" * 100)
    config = settings(f"models.base={model}")
    monkeypatch.setattr("nemo_sdg.store.run.digest", lambda path: f"read {path}" if path == model else None)
    Run.open(tmp_path / "run", config, writer=True).close()
    assert "read" not in (tmp_path / "run/run.yaml").read_text().split("inputs:")[1].split("config:")[0]
    model.write_bytes(b"x" * 101)
    with pytest.raises(StoreError, match="models.base is not what this run began with"):
        Run.open(tmp_path / "run", config, writer=True)


def test_what_killed_processes_were_writing_goes_wherever_it_is(tmp_path: Path):
    """A fork that was killed leaves a folder; a wave and the making of prompts lie deeper than a round's stages."""
    Run.open(tmp_path / "run", settings(), writer=True).close()
    begun = [".run.yaml.tmp-x-1", "round-0/.scored.tmp-fork/part-00000", "round-0/.scored.tmp-fork/.part-00001.tmp-x-1"]
    begun += ["round-0/prompts/.part-00000.tmp-x-1", "round-0/prompts/answers-00/.SUCCESS.json.tmp-x-1"]
    begun += ["round-0/wave-2/revise-1/scored/.part-00000.tmp-x-1"]
    for name in [*begun, "round-0/wave-2/revise-1/scored/part-00001"]:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("x")
    Run.open(tmp_path / "run", settings(), writer=True).close()
    left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {"run.yaml", "run.lock", "round-0/wave-2/revise-1/scored/part-00001"}
    assert not (tmp_path / "run/round-0/.scored.tmp-fork").exists()


def test_a_full_folder_that_is_no_run_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="full and is no run, found thesis.tex"):
        Run.open(tmp_path, RunConfig(), writer=True)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="not a folder"):
        Run.open(tmp_path / "thesis.tex", RunConfig(), writer=True)


HELPED_WRITER = """
import os, sys, time
from nemo_sdg.config import load
from nemo_sdg.store import Run
Run.open(sys.argv[1], load(sys.argv[2]), writer=True)
helper = os.fork()
if helper == 0:
    time.sleep(60)
print(helper, flush=True)
os._exit(9)
"""


def test_a_helper_that_outlives_its_writer_holds_no_lock(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(settings()))
    words = [sys.executable, "-c", HELPED_WRITER, str(tmp_path / "run"), str(recipe)]
    writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    helper = int(writer.stdout.readline())
    assert writer.wait() == 9
    try:
        Run.open(tmp_path / "run", settings(), writer=True).close()
    finally:
        os.kill(helper, signal.SIGKILL)
        writer.stdout.close()


def test_a_lock_that_is_let_go_in_a_moment_is_waited_for(tmp_path):
    """As that of a run which was just killed: its threads end one after the other."""
    path = tmp_path / "run.lock"
    held = lock.take(path, "the run", "wait")
    timer = threading.Timer(0.1, lock.release, [held])
    timer.start()
    lock.release(lock.take(path, "the run", "wait"))
    timer.join()


def test_a_second_writer_is_told_who_the_first_is_and_readers_are_free(tmp_path: Path):
    with Run.open(tmp_path, settings(), writer=True):
        with pytest.raises(StoreError, match=f"in use, found process {os.getpid()} on {os.uname().nodename}"):
            Run.open(tmp_path, settings(), writer=True)
        reader = Run.open(tmp_path, settings(), writer=False)
        reader.events("nothing")
        assert not (tmp_path / "logs").exists()
    Run.open(tmp_path, settings(), writer=True).close()
