"""A fit that is told to stop, or that meets a full disk, leaves a restart point that stands."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace

import pytest
from ranks import run_ranks

from nemo_sdg.console import size_text
from nemo_sdg.errors import StoreError, Stopped
from training import worlds
from training.restarts import SETTINGS, fit, straight_settings


def stopped(mesh, world, out, number, restart_every):
    """The last rank alone is told to stop while it computes the fourth step."""
    from nemo_sdg.training.strategy import FitStrategy

    step = FitStrategy.training_step

    def training_step(self, *args, **kwargs):
        if self.trainer.global_step == 3 and mesh.rank == mesh.world_size - 1:
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    FitStrategy.training_step = training_step
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        fit(mesh, world, out, "sft", replace(SETTINGS, restart_every=restart_every))
    assert signal.getsignal(number) is before and caught.value.exit_status == 75
    return str(caught.value)


def stopped_again(mesh, world, out):
    """The last rank alone is told to stop while the fit reads its restart point."""
    from nemo_sdg.training.strategy import MegatronStrategy

    load = MegatronStrategy.load_checkpoint

    def loading(self, *args):
        found = load(self, *args)
        if mesh.rank == mesh.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    MegatronStrategy.load_checkpoint = loading
    with pytest.raises(Stopped) as caught:
        fit(mesh, world, out, "sft", SETTINGS)
    return str(caught.value)


@pytest.mark.parametrize("number, every", [(signal.SIGTERM, None), (signal.SIGUSR1, 3)])
def test_a_signal_to_one_rank_ends_all_after_their_step(world, tmp_path, number, every):
    messages = run_ranks(stopped, world, tmp_path / "out", number, every, dp=2)
    assert messages[0] == messages[1] and "4 of 8 steps done" in messages[0]
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.fit").iterdir()}
    assert sorted(kept) == ["fit", "step-00000004"]
    messages = run_ranks(stopped_again, world, tmp_path / "out", dp=2)
    assert messages[0] == messages[1] and "told to stop" in messages[0]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.fit").iterdir()} == kept
    straight = run_ranks(fit, world, tmp_path / "straight", "sft", straight_settings(), dp=2)[0]["losses"]
    assert run_ranks(fit, world, tmp_path / "out", "sft", SETTINGS, dp=2)[0]["losses"] == straight


def stopped_while_it_loads(mesh, world, out, kind):
    """The last rank alone is told to stop when it has read a block of the start model: how many it reads."""
    from nemo_sdg.checkpoints import reading

    read, blocks = reading._read_block, []

    def one(*args):
        read(*args)
        blocks.append(args)
        if mesh.rank == mesh.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    reading._read_block = one
    with pytest.raises(Stopped, match="told to stop"):
        fit(mesh, world, out, kind, SETTINGS)
    return len(blocks)


@pytest.mark.parametrize("kind", ["sft", "dpo"])  # the model that is trained, and the reference before it
def test_a_signal_while_the_model_is_loaded_breaks_it_off_on_all_ranks(world, tmp_path, kind):
    assert run_ranks(stopped_while_it_loads, world, tmp_path / "out", kind, dp=2, timeout_s=20)[1] < 5
    assert not list((tmp_path / ".out.fit").glob("step-*"))


def stopped_late(mesh, world, out):
    """The last rank alone is told to stop when all ranks have looked already, in the optimizer's part of the fourth step."""
    from nemo_sdg.training.strategy import FitStrategy

    agree = FitStrategy._agree

    def agreed(self, loss):
        agree(self, loss)
        if self.trainer.global_step == 3 and mesh.rank == mesh.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    FitStrategy._agree = agreed
    with pytest.raises(Stopped) as caught:
        fit(mesh, world, out, "sft", SETTINGS)
    return str(caught.value)


def test_a_signal_late_in_a_step_ends_all_ranks_after_the_next_one(world, tmp_path):
    """Lightning's own handler would end the one rank by itself, with nothing saved."""
    messages = run_ranks(stopped_late, world, tmp_path / "out", dp=2, timeout_s=20)
    assert messages[0] == messages[1] and "5 of 8 steps done" in messages[0]
    assert (tmp_path / ".out.fit" / "step-00000005").is_dir()


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
