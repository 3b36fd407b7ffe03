"""`nemo-sdg verify RUN`: no file of a run can be cut, altered, exchanged or lost without a word."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import model_free
import pytest
from crash_points import working_on
from damage import NOTES, PAGE, damaged, kinds, silent, silent_swap, silent_without, swaps
from disks import Lazy

from nemo_sdg import cli
from nemo_sdg.errors import StoreError
from nemo_sdg.store import Run, commit_json, read_json


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = model_free.inputs(tmp_path_factory.mktemp("verifying"))
    with working_on(Lazy()):
        model_free.run(model_free.settings(folder), folder / "run")
    return folder / "run"


def verified(capsys, run: Path) -> tuple[int, str, str]:
    status = cli.main(["verify", str(run)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    return status, shown.out, shown.err


def test_a_good_run(run, capsys):
    status, said, told = verified(capsys, run)
    assert (status, told) == (0, "") and f"{run}: run tiny, 1 rounds, all finished, " in said


def test_there_are_these_kinds_and_all_but_notes_are_held(run):
    held = sorted(set(kinds(run)) - NOTES)
    assert held == [
        "report.html",
        "round-N/datasets/README.md", "round-N/datasets/SHANSUMS", "round-N/datasets/faulty.jsonl",
        "round-N/datasets/hf/README.md", "round-N/datasets/hf/preference/train.parquet",
        "round-N/datasets/hf/regression/train.parquet", "round-N/datasets/hf/sft/train.parquet",
        "round-N/datasets/preference.jsonl", "round-N/datasets/reward.jsonl", "round-N/datasets/sft.jsonl",
        "round-N/datasets/summary.json",
        "round-N/decisions/SUCCESS.json", "round-N/decisions/part-N.jsonl", "round-N/decisions/stage.json",
        "round-N/evaluation.json",
        "round-N/policy/SHANSUMS", "round-N/policy/training.json", "round-N/policy/weights/shard",
        "round-N/prompts/SUCCESS.json", "round-N/prompts/faulty.jsonl", "round-N/prompts/part-N.jsonl",
        "round-N/prompts/stage.json",
        "round-N/responses/SUCCESS.json", "round-N/responses/faulty-N.jsonl", "round-N/responses/part-N.jsonl",
        "round-N/responses/stage.json",
        "round-N/scored/SUCCESS.json", "round-N/scored/part-N.jsonl", "round-N/scored/stage.json",
        "run.yaml",
    ]  # fmt: skip


def test_every_kind_damaged(run):
    chance, count, passed = random.Random(1), 0, []
    for kind, file in kinds(run).items():
        if kind not in NOTES:
            for what, content in damaged(file.read_bytes(), chance, cuts=3, flips=6):
                count += 1
                passed += [f"{kind} {what}"] if silent(run, file, content) else []
            passed += [f"{kind} lost"] if kind != PAGE and silent_without(run, file) else []
    passed += [f"{a} and {b} exchanged" for a, b in swaps(run, chance, 10) if silent_swap(run, a, b)]
    assert count > 250 and not passed


def test_what_is_wrong_is_one_sentence_each(run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    part = next(copy.glob("round-0/scored/part-00001*"))
    part.write_bytes(part.read_bytes()[:-3])
    (copy / "round-0/policy/weights/shard").write_bytes(b"")
    (copy / "round-0/evaluation.json").unlink()
    (copy / "notes.txt").write_text("mine")
    status, said, told = verified(capsys, copy)
    assert status == 1 and told.count("nemo-sdg: ") == 3 and "not looked at: notes.txt" in said
    assert f"{part}: the part was torn or altered" in told
    assert "policy/weights/shard: the file was torn or altered" in told
    assert "the run is not finished, round-0/evaluation.json is not there; `nemo-sdg run" in told
    (copy / "run.yaml").unlink()
    status, _, told = verified(capsys, copy)
    assert status == 1 and "run.yaml: the file is not there" in told


def test_a_run_can_be_moved_and_renamed(run, tmp_path, capsys):
    assert verified(capsys, Path(shutil.copytree(run, tmp_path / "another name")))[0] == 0


def test_an_altered_run_yaml_stops_the_run(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    text = (copy / "run.yaml").read_text()
    config = model_free.settings(run.parent)
    Run.open(copy, config, writer=True).close()
    (copy / "run.yaml").write_text(text.replace("torch:", "torsh:"))
    with pytest.raises(StoreError, match="run.yaml: the file was torn or altered"):
        Run.open(copy, config, writer=True)


def test_json_is_read_as_it_was_written_or_not_at_all(tmp_path):
    value = {"a": [1, 2.5, None, "\u2028ä"], "b": {"c": 1e-30}}
    commit_json(tmp_path / "x" / "f.json", value)
    assert read_json(tmp_path / "x" / "f.json") == value and read_json(tmp_path / "absent.json") is None
    data = (tmp_path / "x" / "f.json").read_bytes()
    for other in (data.replace(b"2.5", b"2.50"), data.replace(b"\n", b"\r\n"), b"[]", b"{}", b"\xff", data.upper()):
        (tmp_path / "x" / "f.json").write_bytes(other)
        with pytest.raises(StoreError, match="torn or altered"):
            read_json(tmp_path / "x" / "f.json")
    with pytest.raises(ValueError):
        commit_json(tmp_path / "nan.json", {"loss": float("nan")})
    assert not (tmp_path / "nan.json").exists()
