"""A fit that goes on from a restart point: to the bit, at other topologies, told to stop, on a full disk."""

from __future__ import annotations

import os
import random
import resource
import signal
from dataclasses import replace

import pytest
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.console import size_text
from nemo_sdg.errors import StoreError, Stopped
from training import worlds
from training.restarts import SETTINGS, fit, kill_while_saving, killed, recorded, same, straight_settings


@pytest.mark.parametrize("task, name", [("sft", "tp2pp2"), ("reward", "dp2"), ("sft", "one")])
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


@pytest.mark.parametrize("task", ["sft", "reward"])
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
            kept = sorted(path.name for path in (tmp_path / ".out.fit").iterdir())
            assert kept == ["fit", *(f"step-{step:08d}" for step in (kill_at - 2, kill_at) if step)]
        else:
            result = run_ranks(recorded, world, tmp_path / "out", task, settings, **grid)[0]
            drawn.append(result["drawn"])
    assert result["losses"] == pytest.approx(straight["losses"], abs=1e-9) and len(result["losses"]) == 10
    # Another topology begins with other random numbers, which are the same each time.
    assert sorted(drawn[0]) == [8, 9] and all(0 < x < 1 for x in drawn[0][8])


def stopped(mesh, world, out, number, restart_every):
    """Rank 1 alone is told to stop while it computes the fourth step."""

    def tell(step, loss):
        if step == 3:
            os.kill(os.getpid(), number)

    settings = replace(SETTINGS, restart_every=restart_every)
    before = signal.getsignal(number)
    job = _telling(tell) if mesh.rank == mesh.world_size - 1 else {}
    with pytest.raises(Stopped) as caught:
        fit(mesh, world, out, "sft", settings, **job)
    assert signal.getsignal(number) is before and caught.value.exit_status == 75
    return str(caught.value)


def _telling(tell):
    from nemo_sdg.training.strategy import FitStrategy

    step = FitStrategy.training_step

    def training_step(self, *args, **kwargs):
        tell(self.trainer.global_step, 0.0)
        return step(self, *args, **kwargs)

    FitStrategy.training_step = training_step
    return {}


@pytest.mark.parametrize("number, every", [(signal.SIGTERM, None), (signal.SIGUSR1, 3)])
def test_a_signal_to_one_rank_ends_all_after_their_step(world, tmp_path, number, every):
    messages = run_ranks(stopped, world, tmp_path / "out", number, every, dp=2)
    assert messages[0] == messages[1] and "4 of 8 steps done" in messages[0]
    assert sorted(path.name for path in (tmp_path / ".out.fit").iterdir()) == ["fit", "step-00000004"]
    straight = run_ranks(fit, world, tmp_path / "straight", "sft", straight_settings(), dp=2)[0]["losses"]
    assert run_ranks(fit, world, tmp_path / "out", "sft", SETTINGS, dp=2)[0]["losses"] == straight


def told_too_late(mesh, world, out):
    from nemo_sdg.training import fit as module

    got = []
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    commit = module.commit_folder
    module.commit_folder = lambda *args: (os.kill(os.getpid(), signal.SIGTERM), commit(*args))
    fit(mesh, world, out, "sft", replace(SETTINGS, steps=1))
    return got


def test_a_signal_after_the_last_step_acts_once_the_result_is_there(world, tmp_path):
    assert run_ranks(told_too_late, world, tmp_path / "out")[0] == [signal.SIGTERM]
    assert (tmp_path / "out" / "training.json").is_file()


def refused(mesh, world, out, free=None, largest=None):
    """The message of a fit whose disk has so few bytes free, or on which no file may be larger."""
    from nemo_sdg.training import room
    from nemo_sdg.training.checkpoint import CommittedCheckpoint

    save = CommittedCheckpoint._save_checkpoint

    def saves(self, trainer, path):
        if trainer.global_step == 6:
            if free is not None:
                room.free_bytes = lambda where: free
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        return save(self, trainer, path)

    CommittedCheckpoint._save_checkpoint = saves
    with pytest.raises(StoreError) as caught:
        fit(mesh, world, out, "sft")
    return str(caught.value)


@pytest.mark.parametrize("free, largest", [(100_000, None), (None, 50_000)], ids=["no room", "met while writing"])
def test_a_full_disk(world, tmp_path, free, largest):
    work = tmp_path / ".out.fit"
    messages = run_ranks(refused, world, tmp_path / "out", free, largest, tp=2)
    for message in messages:
        assert message.startswith(f"{work}: the restart point after step 6 does not fit on the disk, found ")
        assert "the fit then goes on after step 3" in message
    assert sorted(path.name for path in work.iterdir()) == ["fit", "step-00000003"]
    needed = messages[0].split("expected ")[1].split(";")[0]
    # fp64 weights and two moments of each; the files are a little larger.
    assert needed == size_text(worlds.SHAPE.num_parameters * 24)
    size = sum(file.stat().st_size for file in (work / "step-00000003" / "weights").glob("*.distcp"))
    assert worlds.SHAPE.num_parameters * 24 < size
    if free:
        assert "100.0 kB free, " in messages[0] and "too few" in messages[0]
    straight = run_ranks(fit, world, tmp_path / "straight", "sft", straight_settings(), tp=2)[0]["losses"]
    assert run_ranks(fit, world, tmp_path / "out", "sft", SETTINGS, tp=2)[0]["losses"] == straight


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


def test_ten_kills_while_saving(world, tmp_path):
    assert sum(count for what, count in kill_while_saving(world, tmp_path / "out", 10, random.Random(3)).items()) == 20
