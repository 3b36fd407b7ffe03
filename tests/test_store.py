"""The store: what is listed is whole, whatever was killed, torn, altered or run twice."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from nemo_sdg.config import RunConfig, load, to_yaml
from nemo_sdg.errors import StoreError
from nemo_sdg.store import Group, Run, StageStore, commit_file, commit_folder, files

ROWS, GROUP = 10, 4
INPUT = [{"id": i, "text": f"row {i} \u2028 \u00e4"} for i in range(ROWS)]


def settings(*words: str) -> RunConfig:
    """The tiny recipe with inputs that are not there: a store does not need them."""
    inputs = ("models.base", "models.instruct", "models.reward", "data.prompts", "data.helpsteer2")
    inputs += ("evaluate.exact_match", "evaluate.helpsteer2")
    return load("tiny", [f"{key}=nowhere" for key in inputs] + list(words))


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


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


def test_a_strange_part_is_refused(tmp_path: Path):
    stage = run_stage(tmp_path)
    for name in ("part-00007-n1-0123456789abcdef.jsonl", "part-1.jsonl"):
        (tmp_path / name).write_bytes(b"{}\n")
        with pytest.raises(StoreError, match="not a part of this stage"):
            stage.missing()
        (tmp_path / name).unlink()


def test_a_torn_success_file_is_named(tmp_path: Path):
    run_stage(tmp_path)
    (tmp_path / "SUCCESS.json").write_bytes(b'{"fingerpr')
    with pytest.raises(StoreError, match="torn or altered"):
        store(tmp_path)


class Disk(SimpleNamespace):
    """`os` for store.files that counts what changes the disk, and dies or fails at the k-th such call."""

    CHANGES = ("open", "write", "fsync", "replace", "rename", "mkdir")

    def __init__(self, at: int, failure: BaseException) -> None:
        super().__init__(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
        self.calls, self.at, self.failure = 0, at, failure
        for name in self.CHANGES:
            setattr(self, name, self._counting(getattr(os, name), name))

    def _counting(self, call, name):
        def counted(*args, **kwargs):
            self.calls += 1
            if self.calls == self.at:
                if name == "write":  # half of it arrives
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise self.failure
            return call(*args, **kwargs)

        return counted


@pytest.mark.parametrize("failure", [Killed(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
def test_every_point_of_failure_leaves_a_stage_that_a_rerun_completes(tmp_path: Path, monkeypatch, failure):
    run_stage(tmp_path / "clean")
    clean, at = contents(tmp_path / "clean"), 0
    while True:
        at += 1
        disk = Disk(at, failure)
        monkeypatch.setattr(files, "os", disk)
        folder = tmp_path / str(at)
        try:
            run_stage(folder)
            break
        except (Killed, StoreError) as error:
            assert isinstance(error, Killed) or "No space left" in str(error)
        monkeypatch.setattr(files, "os", os)
        survivor = store(folder)
        assert not survivor.done or at > disk.calls - 2  # SUCCESS comes last; only its folder's sync is after it
        survivor.missing()  # raises if anything torn has a part's name
        run_stage(folder)
        assert contents(folder) == clean
    assert at > 20


class Platter:
    """A disk that keeps only what was synced: file contents by fsync of the file, names by fsync of the folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.kept, self.names, self.open_files = root, {}, {root}, {}

    def record(self, monkeypatch) -> None:
        disk = Disk(-1, Killed())
        real_open, real_sync = os.open, os.fsync

        def open_(path, flags, mode=0o777):
            file = real_open(path, flags, mode)
            self.open_files[file] = Path(path)
            return file

        def fsync(file):
            real_sync(file)
            path = self.open_files[file]
            if path.is_dir():
                self.names |= {entry for entry in path.iterdir()}
                self.names = {name for name in self.names if name.parent != path or name.exists()}
            else:
                self.kept[path.stat().st_ino] = path.read_bytes()

        disk.open, disk.fsync = open_, fsync
        monkeypatch.setattr(files, "os", disk)

    def after_power_loss(self) -> None:
        """Takes from the real folder whatever a power cut now could take."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_file():
                path.write_bytes(self.kept.get(path.stat().st_ino, b""))
            if path not in self.names:
                path.unlink() if path.is_file() else path.rmdir()


def test_what_was_committed_survives_a_power_cut(tmp_path: Path, monkeypatch):
    platter = Platter(tmp_path)
    platter.record(monkeypatch)
    stage = run_stage(tmp_path / "round-0" / "prompts")
    monkeypatch.setattr(files, "os", os)
    platter.after_power_loss()
    assert stage.done and list(stage.read()) == INPUT


def test_a_name_never_arrives_before_its_content(tmp_path: Path, monkeypatch):
    """The names survive and unsynced contents do not: the order fsync, rename is what this holds."""
    platter = Platter(tmp_path)
    platter.record(monkeypatch)
    stage = store(tmp_path)
    stage.commit(stage.groups[0], INPUT[:4])
    monkeypatch.setattr(files, "os", os)
    platter.names |= set(tmp_path.iterdir())
    platter.after_power_loss()
    assert [group.index for group in stage.missing()] == [1, 2]


SLOW_STAGE = """
import sys, time
from nemo_sdg.config import load
from nemo_sdg.store import Run, StageStore
with Run.open(sys.argv[1], load(sys.argv[2]), writer=True) as run:
    stage = StageStore(run.round(0) / "s", "f", 400, 4)
    for group in stage.missing():
        stage.commit(group, [{"id": i} for i in range(group.start, group.stop)])
        print(group.index, flush=True)
    stage.finish({"rows_in": 400, "kept": 400})
"""


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(settings()))

    def start(out: Path) -> subprocess.Popen:
        words = [sys.executable, "-c", SLOW_STAGE, str(out), str(recipe)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    clean, killed = start(tmp_path / "clean"), 0
    assert clean.communicate() and clean.returncode == 0
    for after in (1, 13, 40):
        child = start(tmp_path / "killed")
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert killed == 3
    last = start(tmp_path / "killed")
    redone = last.communicate()[0].split()
    assert last.returncode == 0 and len(redone) <= 100 - 54
    a, b = (contents(tmp_path / x / "round-0" / "s") for x in ("clean", "killed"))
    assert a == b


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


def test_a_second_writer_is_told_who_the_first_is_and_readers_are_free(tmp_path: Path):
    with Run.open(tmp_path, settings(), writer=True):
        with pytest.raises(StoreError, match=f"in use, found process {os.getpid()} on {os.uname().nodename}"):
            Run.open(tmp_path, settings(), writer=True)
        reader = Run.open(tmp_path, settings(), writer=False)
        reader.events("nothing")
        assert not (tmp_path / "logs").exists()
    Run.open(tmp_path, settings(), writer=True).close()
