"""`nemo-sdg evaluate` as a user types it: tables, the JSON whole, and one sentence for what makes no sense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from openai_server import serving
from processes import Done, forked
from ranks import run_ranks  # noqa: F401  (imports megatron once, before the verbs fork their ranks)

from nemo_sdg import cli
from nemo_sdg.evaluation.rewardbench import SECTIONS
from nemo_sdg.store import commit_rows

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny"


def shell(*words: object) -> Done:
    return forked(lambda: cli.main(["evaluate", *map(str, words)]))


def refused(capsys, *words: object) -> str:
    """The one sentence on standard error with which the verb refuses."""
    assert cli.main(["evaluate", *map(str, words)]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out and shown.err.count("\n") == 1
    return shown.err


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A few rows of each file of the tiny world, and one that cannot be used."""
    folder = tmp_path_factory.mktemp("rows")
    few = {"heldout": 8, "instructions": 4, "helpsteer2_validation": 20, "rewardbench": 138}
    for name, count in few.items():
        lines = (TINY / "data" / f"{name}.jsonl").read_text().splitlines()
        some = [json.loads(line) for line in lines][:: len(lines) // count][:count]
        commit_rows(folder / f"{name}.jsonl", [*some, {"id": "bad", "prompt": "Add 1 and 2."}])
    return folder


def files(rows: Path) -> list[object]:
    return [
        "--rewardbench", rows / "rewardbench.jsonl", "--helpsteer2", rows / "helpsteer2_validation.jsonl",
        "--exact-match", rows / "heldout.jsonl", "--instructions", rows / "instructions.jsonl",
        "--win-rate", rows / "heldout.jsonl",
    ]  # fmt: skip


MODELS = ["--policy", TINY / "instruct", "--against", TINY / "base", "--reward", TINY / "reward"]


@pytest.fixture(scope="module")
def measured(rows, tmp_path_factory) -> tuple[dict, Done]:
    out = tmp_path_factory.mktemp("out") / "evaluation.json"
    done = shell(*MODELS, *files(rows), "--out", out, "--dtype", "fp64", "--max-tokens", 48)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done


def test_all_of_it_end_to_end(measured, rows):
    told, done = measured
    assert told["policy"]["n"] == 8 and told["policy"]["faulty"] == 1 and 0 < told["policy"]["exact_match"] < 1
    assert told["instructions"]["prompts"] == 4 and told["instructions"]["instructions"] == 8
    assert told["instructions"]["prompt_loose"] >= told["instructions"]["prompt_strict"]
    assert told["reward"]["helpfulness"]["n"] == 20 and told["reward"]["helpfulness"]["spearman"] > 0.5
    assert told["reward_faulty"] == told["rewardbench"]["faulty"] == 1
    assert told["rewardbench"]["Safety"] > 0.9 and set(told["rewardbench"]["length_only"]) == {*SECTIONS, "Overall"}
    assert len(told["rewardbench"]["subsets"]) == 23
    assert told["win_rate"]["n"] == 9 and told["win_rate"]["losses"] >= told["win_rate"]["wins"]
    assert set(told["models"]) == {"policy", "against", "reward"} and len(told["models"]["policy"]["policy"]) == 16
    shown = done.stdout
    for text in ("exact match", "win rate at equal length", "instructions, each, loose", "alpacaeval-easy", "the longer one",
                 "calibrated mae", "1 of 9 rows of", "not the split `filtered` of RewardBench", "all figures are in"):  # fmt: skip
        assert text in shown, text
    assert f"{told['rewardbench']['Overall']:.3f}" in shown


def test_on_two_ranks_the_figures_are_the_same(measured, rows, tmp_path):
    done = shell(*MODELS, *files(rows), "--out", tmp_path / "two.json", "--dtype", "fp64", "--max-tokens", 48, "--tp", 2)
    assert done.returncode == 0, done.stderr
    one, two = measured[0], json.loads((tmp_path / "two.json").read_text())
    for name in ("policy", "instructions", "rewardbench", "win_rate", "models", "files"):
        assert two[name] == one[name], name
    for name, attribute in one["reward"].items():
        for key in ("pearson", "spearman", "mae", "mse", "calibrated_mae"):
            assert two["reward"][name][key] == pytest.approx(attribute[key], abs=1e-9), (name, key)


def test_servers_in_the_place_of_folders(rows, tmp_path):
    with serving() as server:
        words = [f"{group}.{key}" for group in ("score", "generate") for key in
                 (f"endpoint.url={server.url}", "backend=endpoint", "endpoint.retries=0")]  # fmt: skip
        asked = ["--rewardbench", rows / "rewardbench.jsonl", "--exact-match", rows / "heldout.jsonl"]
        done = shell(*words, *asked, "--out", tmp_path / "served.json", "--tp", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "served.json").read_text())
    assert len(server.asked) == 276 + 8, "each row is asked about once, by one rank"
    assert told["rewardbench"]["faulty"] == 1 and told["policy"]["n"] == 8 and told["policy"]["exact_match"] == 0.0
    assert told["models"] == {"policy": {"folder": None, "policy": "endpoint:policy"},
                              "reward": {"folder": None, "reward": "endpoint:policy"}}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "there is nothing to measure, expected at least one of --rewardbench, --helpsteer2, --exact-match"),
        (["--rewardbench", "f"], "--rewardbench has no reward model to ask, expected --rewardbench f --reward DIR"),
        (["--exact-match", "f", "--reward", TINY / "reward"], "--exact-match has no policy to ask"),
        (["--win-rate", "f", "--policy", "p", "--reward", "r"], "--win-rate has no policy to compare with, expected "
         "--win-rate f --policy DIR --against DIR --reward DIR"),
        (["--rewardbench", "f", "--reward", TINY / "reward", "--policy", "p"], "--policy: nothing is asked of the model, found p"),
        (["--exact-match", "f", "--policy", "p", "--against", "q"], "--against: nothing is asked of the model, found q, expected --win-rate FILE"),
        (["--exact-match", "f", "--policy", TINY / "reward"], "the checkpoint is of the wrong kind"),
        (["--exact-match", "f", "--policy", "nowhere"], "there is no such model folder"),
        (["--rewardbench", "f", "--reward", TINY / "reward", "--tp", 3], "tp does not divide"),
        (["--rewardbench", "f", "--reward", TINY / "reward", "select.target=3"], "select.target: not a setting of evaluation"),
        (["--rewardbench", "f", "--reward", TINY / "reward", "evaluate.weights.helpfulnes=3"], "the nearest is helpfulness"),
        (["--rewardbench", "f", "--reward", "r", "score.backend=endpoint", "score.endpoint.url=http://127.0.0.1:1/v1"],
         "--reward: a server and a folder are both named"),
        (["--rewardbench", "f.jsonl", "--reward", TINY / "reward"], "f.jsonl: cannot read the rows"),
        (["--rewardbench", TINY / "data" / "heldout.jsonl", "--reward", TINY / "reward"], "the column chosen is missing"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, *words)


def test_bad_files(rows, capsys, tmp_path):
    reward = ["--reward", TINY / "reward"]
    good = rows / "rewardbench.jsonl"
    assert "cannot be written, found the input itself" in refused(capsys, "--rewardbench", good, *reward, "--out", good)
    assert ":139: the column chosen is missing" in refused(capsys, "--rewardbench", good, *reward, "--strict")
    shutil.copy(good, tmp_path / "unknown.jsonl")
    (tmp_path / "unknown.jsonl").write_text(good.read_text().replace("hep-rust", "hep-rusty"))
    sentence = refused(capsys, "--rewardbench", tmp_path / "unknown.jsonl", *reward)
    assert "RewardBench has no such subset, found 'hep-rusty', expected 'hep-rust'" in sentence
