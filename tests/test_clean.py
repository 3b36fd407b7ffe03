"""What of a run goes by `keep.*` and by `nemo-sdg clean`, and that the run is none the worse for it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from ranks import run_ranks
from small_run import make_inputs, row_files, small_config, whole

from nemo_sdg import cli, fork, verbs
from nemo_sdg.checkpoints import keeping, retired
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Keep, Preference, from_yaml
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.store import commit_json, disk, read_json
from nemo_sdg.store.lock import release, take
from nemo_sdg.store.seals import CLEANED
from nemo_sdg.store.verifying import verify_run

LITTLE = Keep(models="last", intermediate=False)
GONE = ["round-0/policy", "round-0/reward", "round-0/sft", "round-1/sft"]
WORDS = ["keep.models=last", "keep.intermediate=false"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    import nemo.collections.llm  # noqa: F401  (once, before any rank is forked)

    root = make_inputs(tmp_path_factory.mktemp("inputs"))
    pairs = [{"prompt": f"c{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(8)]
    (root / "preferred.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return root


def settings(inputs: Path, keep: Keep = Keep(), rounds: int = 2):
    tuned = Preference(enabled=True, objective="dpo", steps=2, global_batch_size=4, micro_batch_size=2, max_length=256)
    config = small_config(inputs, rounds=rounds)
    data = dataclasses.replace(config.data, preference={f"{inputs}/preferred.jsonl": 1.0})
    return dataclasses.replace(config, preference=tuned, data=data, keep=keep)


@pytest.fixture(scope="module")
def kept(inputs, tmp_path_factory):
    """Two rounds with all their models."""
    out = tmp_path_factory.mktemp("kept") / "run"
    run_ranks(whole, settings(inputs), out, timeout_s=120)
    return out


@pytest.fixture
def run(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "run")


def weights(run: Path) -> list[str]:
    return sorted({str(file.relative_to(run).parents[1]) for file in run.rglob("*.distcp")})


def problems(run: Path) -> list[str]:
    return verify_run(run, Console(io.StringIO()))


def test_a_run_that_keeps_little_makes_the_same_rows_and_goes_on(inputs, kept, tmp_path):
    """Also over a third round that is asked for afterwards: digests of models without weights stand in its rows."""
    out = tmp_path / "little"
    run_ranks(whole, settings(inputs, LITTLE), out, timeout_s=120)
    assert weights(out) == ["round-1/policy", "round-1/reward"] and row_files(out) == row_files(kept)
    assert not problems(out) and verbs._finished(out, settings(inputs, LITTLE))
    further, all_kept = settings(inputs, LITTLE, 3), shutil.copytree(kept, tmp_path / "all")
    run_ranks(whole, further, out, timeout_s=120)
    run_ranks(whole, settings(inputs, rounds=3), all_kept, timeout_s=120)
    assert weights(out) == ["round-2/policy", "round-2/reward"] and row_files(out) == row_files(all_kept)
    assert not problems(out) and verbs._finished(out, further)


def test_clean_lists_and_deletes_only_when_told(run, capsys):
    before = {file: file.stat().st_size for file in run.rglob("*.distcp")}
    assert cli.main(["clean", str(run)]) == 0
    assert "nothing to delete; keep.models=last keep.intermediate=false would let go" in capsys.readouterr().out
    assert cli.main(["clean", str(run), *WORDS]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines() if line.startswith("  round-")] == [
        "round-0/sft", "round-1/sft", "round-0/policy", "round-0/reward"
    ]  # fmt: skip
    assert "nothing is deleted yet" in told and {f: f.stat().st_size for f in run.rglob("*.distcp")} == before
    assert cli.main(["clean", str(run), *WORDS, "--yes"]) == 0
    assert "deleted; rows, datasets and the last models are as they were" in capsys.readouterr().out
    assert weights(run) == ["round-1/policy", "round-1/reward"] and not problems(run)
    assert cli.main(["clean", str(run), *WORDS]) == 0 and "nothing to delete\n" in capsys.readouterr().out


def test_what_is_still_needed_is_not_listed(run, inputs):
    """Until the round after it is evaluated, a model may be asked for again."""
    config = settings(inputs, LITTLE)
    assert sorted(str(one.path.relative_to(run)) for one in keeping.removable(run, config)) == GONE
    (run / "round-1" / "evaluation.json").unlink()
    assert [str(one.path.relative_to(run)) for one in keeping.removable(run, config)] == ["round-0/sft"]
    shutil.rmtree(run / "round-1" / "policy")
    assert [str(one.path.relative_to(run)) for one in keeping.removable(run, config)] == ["round-0/sft"]
    (run / "round-0" / "evaluation.json").write_text("torn")
    assert not list(keeping.removable(run, config))


def test_restart_points_go_only_when_their_fit_is_done(run, inputs):
    for name in (".policy.fit", ".other.fit"):
        (run / "round-1" / name / "step-00000001").mkdir(parents=True)
    (run / "round-1" / ".policy.tmp-1").mkdir()
    found = [str(one.path.relative_to(run)) for one in keeping.removable(run, settings(inputs))]
    assert found == ["round-1/.policy.fit", "round-1/.policy.tmp-1"]
    shutil.rmtree(run / "round-1" / "policy")
    assert [str(one.path.name) for one in keeping.removable(run, settings(inputs))] == [".policy.tmp-1"]


def test_a_power_cut_in_between_is_finished_later(run, inputs, monkeypatch):
    class Broken(disk.FileSystem):
        def unlink(self, path: Path) -> None:
            raise OSError(5, "cut")

    before = {name: ModelFolder.open(run / name).digest for name in GONE}
    monkeypatch.setattr(disk, "fs", Broken())
    with pytest.raises(OSError):
        keeping.tidy(run, settings(inputs, LITTLE))
    monkeypatch.setattr(disk, "fs", disk.FileSystem())
    assert (run / GONE[2] / CLEANED).is_file() and not problems(run) and len(weights(run)) == 6
    keeping.tidy(run, settings(inputs, LITTLE))
    assert weights(run) == ["round-1/policy", "round-1/reward"] and not problems(run)
    assert {name: ModelFolder.open(run / name).digest for name in GONE} == before


def test_a_model_without_weights_says_what_it_was_and_cannot_be_loaded(run, inputs):
    from nemo_sdg.engine.load import load_model

    there = ModelFolder.open(run / "round-0/reward")
    shape, dtype, tensors = there.shape, there.dtype, there.contents.tensors
    keeping.tidy(run, settings(inputs, LITTLE))
    left = ModelFolder.open(run / "round-0/reward")
    assert (left.shape, left.dtype, left.is_reward) == (shape, dtype, True)
    assert {key: dataclasses.replace(one, where=None) for key, one in left.contents.tensors.items()} == {
        key: dataclasses.replace(one, where=None) for key, one in tensors.items()
    }

    def load(mesh):
        with pytest.raises(CheckpointError, match="the weights were deleted by `nemo-sdg clean`"):
            load_model(run / "round-0/reward", mesh, reward=True)

    run_ranks(load)


def test_an_altered_note_is_found(run, inputs):
    keeping.tidy(run, settings(inputs, LITTLE))
    note = run / "round-0/sft" / CLEANED
    note.write_text(note.read_text().replace('"fp32"', '"fp16"', 1))
    assert any(str(note) in problem for problem in problems(run))
    with pytest.raises(ValueError, match="torn or altered"):
        ModelFolder.open(run / "round-0/sft").contents


def test_other_files_of_a_cleaned_model_are_still_checked(run, inputs):
    keeping.tidy(run, settings(inputs, LITTLE))
    (run / "round-0/sft/training.json").unlink()
    (run / "round-0/policy/weights/common.pt").write_bytes(b"x")
    sums = run / "round-0/reward/SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  more\n")
    (run / "round-1/sft/SHA256SUMS").write_text((run / "round-1/sft/SHA256SUMS").read_text() + "no sum\n")
    told = " ".join(problems(run))
    assert "round-1/sft/SHA256SUMS: the file was torn or altered" in told
    assert "training.json: the file is listed and not there" in told and "common.pt: the file was torn" in told
    assert "reward/more: the file is listed and not there" in told


def test_a_fork_does_not_go_on_from_weights_that_are_gone(run, inputs):
    keeping.tidy(run, settings(inputs, LITTLE))
    config = from_yaml(run / "run.yaml")
    steps = {f"{s.folder}/{s.name}": s.reused for s in fork.plan(run, config, config)}
    assert steps["round-0/datasets"] and not steps["round-0/policy"] and not steps["round-1/responses"]


def test_bad_words_and_folders(run, tmp_path, capsys):
    def refused(*words: str) -> str:
        assert cli.main(["clean", *words]) == 2
        return capsys.readouterr().err

    assert "the folder is no run, found no run.yaml" in refused(str(tmp_path))
    assert "only what stays can be changed here, found run.rounds=3" in refused(str(run), "run.rounds=3")
    assert "one of all, last" in refused(str(run), "keep.models=best")
    assert "the nearest valid key is keep.models" in refused(str(run), "keep.model=all")
    lock = take(run / "run.lock", "the run", "")
    try:
        assert "the run is in use" in refused(str(run), *WORDS, "--yes")
    finally:
        release(lock)


def test_a_hostile_note_reads_nothing_outside(tmp_path, run, inputs):
    keeping.tidy(run, settings(inputs, LITTLE))
    folder = run / "round-0/sft"
    told = retired._told(folder)
    told["tensors"] = {key: {**one, "by_layer": [[layer, [["../../../x", *piece[1:]] for piece in pieces]] for layer, pieces in one["by_layer"]]}
                       for key, one in told["tensors"].items()}  # fmt: skip
    from nemo_sdg.store import commit_json

    (run.parent / "x").write_bytes(b"\0" * 1_000_000)
    commit_json(folder / CLEANED, told)

    def load(mesh):
        from nemo_sdg.engine.load import load_model

        with pytest.raises(CheckpointError, match="leads out"):
            load_model(folder, mesh)

    run_ranks(load)


def gated(run: Path, number: int, **accepted: bool) -> None:
    """Writes into a round's evaluation what the gate would have said."""
    path = run / f"round-{number}" / "evaluation.json"
    told = {**read_json(path), "gate": {kind: {"accepted": good, "why": "said so"} for kind, good in accepted.items()}}
    path.unlink()
    commit_json(path, told)


def test_a_model_that_was_no_better_goes_and_the_one_before_it_stays(inputs, run):
    gated(run, 1, policy=False, reward=True)
    assert {str(one.path.relative_to(run)) for one in keeping.removable(run, settings(inputs, LITTLE))} == {
        "round-0/sft", "round-1/sft", "round-1/policy", "round-0/reward",
    }  # fmt: skip
    gated(run, 0, policy=False, reward=False)
    assert {str(one.path.relative_to(run)) for one in keeping.removable(run, settings(inputs, LITTLE))} == {
        "round-0/sft", "round-1/sft", "round-0/policy", "round-1/policy", "round-0/reward",
    }  # fmt: skip


def test_the_first_reward_model_of_the_run_stays_as_long_as_it_judges(inputs, run):
    shutil.copytree(run / "round-0" / "reward", run / "start" / "reward")
    for rows, stays in ((f"{inputs}/held.jsonl", True), (None, False)):
        config = settings(inputs, LITTLE)
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, win_rate=rows))
        paths = [one.path for one in keeping.removable(run, config)]
        assert (run / "start" / "reward" not in paths) is stays


@pytest.mark.parametrize("ablation, start_from, stays", [(True, "latest", True), (True, "base", False), (False, "latest", False)])
def test_the_first_policy_of_the_run_stays_as_long_as_the_ablation_starts_from_it(inputs, run, ablation, start_from, stays):
    shutil.copytree(run / "round-0" / "policy", run / "start" / "policy")
    config = settings(inputs, LITTLE)
    config = dataclasses.replace(
        config, sft=dataclasses.replace(config.sft, start_from=start_from),
        evaluate=dataclasses.replace(config.evaluate, ablation=ablation),
    )  # fmt: skip
    assert (run / "start" / "policy" not in [one.path for one in keeping.removable(run, config)]) is stays


@pytest.mark.parametrize(
    "piece, told_as", [("../../../mine", "altered"), ("{absolute}", "altered"), ("link/mine", "a link leads out")]
)
def test_a_hostile_note_deletes_nothing_outside(tmp_path, run, inputs, piece, told_as):
    """Its seal has no key: who writes a note can seal it again."""
    keeping.tidy(run, settings(inputs, LITTLE))
    mine, folder = run.parent / "mine", run / "round-0/sft"
    mine.write_bytes(b"mine")
    (folder / "link").symlink_to(run.parent)
    piece = piece.format(absolute=mine)
    told = retired._told(folder)
    for one in told["tensors"].values():
        one["by_layer"] = [[layer, [[piece, *rest] for _, *rest in pieces]] for layer, pieces in one["by_layer"]]
    (folder / CLEANED).unlink()
    commit_json(folder / CLEANED, told)
    assert not list(keeping.removable(run, settings(inputs, LITTLE)))
    with pytest.raises(CheckpointError, match=told_as):
        contents = ModelFolder.open(folder).contents
        retired.retire(folder, contents, {})
    assert cli.main(["clean", str(run), *WORDS, "--yes"]) == 0 and mine.read_bytes() == b"mine"


def test_models_of_another_run_that_are_linked_in_stay(kept, run, inputs):
    shutil.rmtree(run / "round-0" / "sft")
    (run / "round-0" / "sft").symlink_to(kept / "round-0" / "sft")
    shutil.move(run / "round-0" / "policy", run.parent / "policy")
    (run / "round-0" / "policy").symlink_to(run.parent / "policy")
    assert [str(one.path.relative_to(run)) for one in keeping.removable(run, settings(inputs, LITTLE))] == [
        "round-1/sft", "round-0/reward"
    ]  # fmt: skip


def test_a_file_that_another_run_shares_frees_nothing(inputs, run, tmp_path):
    """As after `fork`, which links."""

    def sizes() -> dict[str, int]:
        return {str(one.path.relative_to(run)): one.num_bytes for one in keeping.removable(run, settings(inputs, LITTLE))}

    before = sizes()
    for number, file in enumerate((run / "round-0" / "policy").rglob("*.distcp")):
        os.link(file, tmp_path / str(number))
    assert before["round-0/policy"] > 0 and sizes() == {**before, "round-0/policy": 0}
