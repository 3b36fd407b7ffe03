"""A fit that goes on from a restart point: to the bit, at other topologies, after kills while it was saved."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.errors import CheckpointError, StoreError
from training.restarts import SETTINGS, fit, kill_while_saving, killed, recorded, same, straight_settings


@pytest.mark.parametrize("task, name", [("rpo", "tp2pp2"), ("bradley_terry", "dp2"), ("sft", "one")])
def test_it_goes_on_to_the_bit(world, tmp_path, task, name):
    tp, pp, dp = TOPOLOGIES[name]
    grid = dict(tp=tp, pp=pp, dp=dp)
    straight = run_ranks(recorded, world, tmp_path / "straight", task, straight_settings(), **grid)
    killed(recorded, world, tmp_path / "out", task, SETTINGS, 5, timeout_s=20, **grid)
    resumed = run_ranks(recorded, world, tmp_path / "out", task, SETTINGS, **grid)
    for one, other in zip(straight, resumed):
        same(one, other, since=3)
    drawn = [tuple(one["drawn"][7]) for one in straight]
    assert len(set(drawn)) == len(drawn), "each rank draws numbers of its own"


@pytest.mark.parametrize("task", ["reward", "rpo"])
def test_it_goes_on_through_every_topology(world, tmp_path, task):
    """Two steps at each of the five; what was saved under one is loaded under the next."""
    straight = run_ranks(fit, world, tmp_path / "straight", task, straight_settings(replace(SETTINGS, steps=10)))[0]
    settings = replace(SETTINGS, steps=10, restart_every=2, keep_last=2)
    drawn = []
    for number, name in enumerate(("dp2", "tp2pp2", "tp2", "pp2", "one")):
        tp, pp, dp = TOPOLOGIES[name]
        grid, kill_at = dict(tp=tp, pp=pp, dp=dp), 2 * number + 2
        if kill_at < 10:
            killed(recorded, world, tmp_path / "out", task, settings, kill_at, timeout_s=20, **grid)
            kept = sorted(path.name for path in (tmp_path / ".out.fit").glob("*step*"))
            assert kept == [f"step-{step:08d}" for step in (kill_at - 2, kill_at) if step]
        else:
            result = run_ranks(recorded, world, tmp_path / "out", task, settings, **grid)[0]
            drawn.append(result["drawn"])
    assert result["losses"] == pytest.approx(straight["losses"], abs=1e-9) and len(result["losses"]) == 10
    # Another topology begins with other random numbers, which are the same each time.
    assert sorted(drawn[0]) == [8, 9] and all(0 < x < 1 for x in drawn[0][8])


def leftovers(mesh, world, out):
    from nemo_sdg.training.checkpoint import tidy, whole_steps

    for name in ("step-00000004", ".step-00000008.writing", ".step-00000002.going"):
        (out / name / "weights").mkdir(parents=True)
    (out / ".step-00000008.writing-unfinished").write_text("")
    steps = whole_steps(out)
    tidy(out)
    return steps, sorted(path.name for path in out.iterdir())


def test_what_a_killed_save_has_left_is_no_restart_point_and_goes(world, tmp_path):
    assert run_ranks(leftovers, world, tmp_path / "work")[0] == ([4], ["step-00000004"])


def test_a_clean_up_that_is_killed_leaves_no_restart_point(tmp_path, monkeypatch):
    """Settings are changed, the start that takes the old fit away is killed, and they are changed back."""
    from nemo_sdg.training import result

    work = tmp_path / ".out.fit"
    assert result.prepare(work, "one") == 0
    for name in ("best-00000002", "step-00000003"):
        (work / name / "weights").mkdir(parents=True)
    assert result.prepare(work, "one") == 3
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", lambda folder: [folder / name for name in sorted(os.listdir(folder))])
        patched.setattr(result.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            result.prepare(work, "another")
    assert result.prepare(work, "one") == 0 and os.listdir(work) == ["fit"]


@pytest.mark.parametrize("torn", ["", '{"signature": "one", "los', "\udcff"])
def test_a_torn_note_is_told_in_one_sentence(tmp_path, torn):
    from nemo_sdg.training import result

    for name in ("losses.json", "training.json"):
        (tmp_path / name).write_text(torn, errors="surrogateescape")
        with pytest.raises(StoreError, match=f"{name}: the file was torn or altered"):
            result.losses_at(tmp_path, name) if name == "losses.json" else result.committed(tmp_path, "one")


def refused(mesh, folder):
    from nemo_sdg.training import randomness

    with pytest.raises(StoreError) as caught:
        randomness.save(folder / "whole" if mesh.writer else folder / "a file", mesh)
    return str(caught.value)


def test_a_rank_that_cannot_keep_its_random_state_stops_all(world, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "a file").write_text("")
    first, second = run_ranks(refused, tmp_path, dp=2, timeout_s=20)
    assert first == second and "a file/random/rank-00001.json: cannot write, found Not a directory" in first


def damaged(mesh, world, out):
    with pytest.raises(CheckpointError) as caught:
        fit(mesh, world, out, "sft")
    return str(caught.value)


def test_a_damaged_restart_point_is_named_with_the_way_out(world, tmp_path):
    killed(recorded, world, tmp_path / "out", "sft", SETTINGS, 4, timeout_s=20, tp=2)
    folder = tmp_path / ".out.fit" / "step-00000003"
    file = max((folder / "weights").glob("*.distcp"))  # of the second rank
    file.write_bytes(file.read_bytes()[:5000])
    for message in run_ranks(damaged, world, tmp_path / "out", tp=2, timeout_s=20):
        assert message.startswith(f"{folder}: what the fit has saved here cannot be read, found CheckpointException")
        assert message.endswith("delete this folder; the fit goes on from the restart point before it, or begins again")


def synced(mesh, world, out):
    """What the disk is asked for, in order, from the third step on."""
    from nemo_sdg.store import disk

    log, names = [], {}

    class Writing(disk.FileSystem):
        def open(self, path, flags):
            file = super().open(path, flags)
            names[file] = path
            return file

        def fsync(self, file):
            log.append(("fsync", str(names[file])))

        def replace(self, source, target):
            log.append(("replace", str(target)))
            super().replace(source, target)

    disk.fs = Writing()
    fit(mesh, world, out, "sft", replace(SETTINGS, steps=3, restart_every=2))
    return log


def test_a_restart_point_is_on_the_disk_before_it_has_its_name(world, tmp_path):
    log = run_ranks(synced, world, tmp_path / "out", tp=2)[0]
    work = tmp_path / ".out.fit"
    at = log.index(("replace", str(work / "step-00000002")))
    before = {path for what, path in log[:at] if what == "fsync"}
    writing = str(work / ".step-00000002.writing")
    names = ("losses.json", "random/rank-00001.json", "weights/common.pt", "context/io.json")
    assert {writing, *(f"{writing}/{name}" for name in names)} <= before
    assert log[at + 1] == ("fsync", str(work))


def test_five_kills_while_saving(world, tmp_path):
    assert sum(count for what, count in kill_while_saving(world, tmp_path / "out", 5, random.Random(3)).items()) == 10
