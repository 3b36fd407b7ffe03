"""The command line: fast help, one clear sentence for what is wrong, and files in, files out on real ranks."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import shutil
from pathlib import Path

import pytest
import yaml
from folders import make_folder, make_tokenizer, small_shape
from processes import Done, cpu_seconds, forked

from nemo_sdg import cli
from nemo_sdg.config import ATTRIBUTES, Generate, load
from nemo_sdg.session import Session
from nemo_sdg.store import Run, StageStore, commit_file, commit_json, commit_rows, digest


def shell(*arguments: object) -> Done:
    """The command as a user types it, in a process of its own."""
    return forked(lambda: cli.main([str(word) for word in arguments]))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two random models as released folders, prompts of every kind, and a recipe that names them."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = make_tokenizer(folder / "pieces.model")
    make_folder(folder / "policy", dataclasses.replace(small_shape(), seq_length=64), tokenizer)
    longer = dataclasses.replace(small_shape(), seq_length=256)  # the reward template brings a long system text
    make_folder(folder / "reward", longer, tokenizer, reward=True)
    prompts = [
        json.dumps({"id": "a", "prompt": "abc"}),
        json.dumps({"id": "b", "prompt": "  "}),
        '{"id": "c", "prompt": ',
        json.dumps({"id": "d", "prompt": "x y z " * 60}),
        json.dumps({"id": "e", "messages": [{"role": "user", "content": "cab"}], "colour": "red"}),
    ]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    (folder / "long.jsonl").write_text(prompts[3] + "\n")
    (folder / "good.jsonl").write_text(prompts[0] + "\n")
    paths = {"base": "policy", "instruct": "policy", "reward": "reward"}
    recipe = {
        "models": {key: str(folder / name) for key, name in paths.items()},
        "data": {"prompts": str(folder / "prompts.jsonl")},
        "run": {"name": "small"},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_help_is_fast_and_imports_neither_torch_nor_nemo():
    code = (
        "import sys\n"
        "from nemo_sdg.cli import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'nemo', 'megatron', 'lightning', 'rich', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    seconds, shown = min(cpu_seconds(code) for _ in range(5))
    for verb in ("run", "stage", "generate", "score", "plan", "report"):
        assert f"  {verb} " in shown
    print(f"nemo-sdg --help: {seconds:.3f} s of CPU")
    assert seconds < 0.3


@pytest.mark.parametrize("verb", ["run", "stage", "generate", "score", "plan", "report"])
def test_every_verb_has_help(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    assert "--help" in capsys.readouterr().out


def refused(capsys, *arguments: object) -> str:
    """The one sentence on standard error with which the command refuses."""
    assert cli.main([str(word) for word in arguments]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    assert shown.err.startswith("nemo-sdg: ") and shown.err.count("\n") == 1, shown.err
    return shown.err


def broken(world: Path, tmp_path: Path, name: str = "policy") -> Path:
    """A copy of a model folder, to be damaged."""
    return Path(shutil.copytree(world / name, tmp_path / "damaged"))


PLAN_WORDS = {
    "no such recipe": (["tinny"], "there is no recipe of this name", "the nearest is tiny"),
    "unknown key": (["tiny", "generate.max_tokns=3"], "unknown key 'generate.max_tokns'", "generate.max_tokens"),
    "wrong type": (["tiny", "run.rounds=many"], "run.rounds has the wrong type", "a whole number"),
    "not key=value": (["tiny", "rounds"], "not a setting", "key=value"),
    "tp and KV groups": (["small.yaml", "topology.tp=4"], "tp does not divide the model's KV groups", "one of 1, 2"),
    "pp and layers": (["small.yaml", "topology.pp=3"], "pp does not divide the model's layers", "one of 1, 2, 4"),
    "no such folder": (["small.yaml", "models.instruct=nowhere"], "there is no such model folder", "nowhere"),
    "wrong kind": (["small.yaml", "models.instruct=reward"], "the checkpoint is of the wrong kind", "a language model"),
    "batch and replicas": (["small.yaml", "topology.dp=3"], "cut into whole micro batches", "24"),
}


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize("case", PLAN_WORDS)
def test_what_is_wrong_with_settings_is_one_sentence(case, verb, world, capsys, monkeypatch):
    words, *expected = PLAN_WORDS[case]
    monkeypatch.chdir(world)
    before = sorted(os.listdir(world))
    sentence = refused(capsys, verb, *words)
    assert all(part in sentence for part in expected), sentence
    assert sorted(os.listdir(world)) == before  # no run folder was begun


def test_a_folder_that_is_no_checkpoint(world, tmp_path, capsys):
    sentence = refused(
        capsys, "generate", "--model", tmp_path, "--prompts", world / "good.jsonl", "--out", tmp_path / "g"
    )
    assert "the folder is not a checkpoint" in sentence and "found nothing" in sentence
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("out, found", [("x.jsonl.gz", "a compressed file"), ("good.jsonl", "the input itself")])
def test_a_result_that_could_not_be_used(world, capsys, out, found):
    before = (world / "good.jsonl").read_bytes()
    arguments = ["--model", world / "policy", "--prompts", world / "good.jsonl", "--out", world / out]
    assert found in refused(capsys, "generate", *arguments)
    assert (world / "good.jsonl").read_bytes() == before and not (world / "x.jsonl.gz").exists()


def test_the_input_is_not_taken_for_faulty_rows_of_before(world, tmp_path, capsys):
    rows = tmp_path / "g.jsonl.faulty.jsonl"
    shutil.copy(world / "good.jsonl", rows)
    arguments = ["--model", world / "policy", "--prompts", rows, "--out", tmp_path / "g.jsonl"]
    assert "the input itself" in refused(capsys, "generate", *arguments)
    assert rows.read_bytes() == (world / "good.jsonl").read_bytes()


def test_a_round_that_the_run_does_not_have(world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    assert "no such round" in refused(capsys, "stage", "select", "small.yaml", "--round", "7")


def test_a_missing_tensor(world, tmp_path, capsys):
    folder = broken(world, tmp_path)
    shutil.rmtree(folder / "model_weights" / "model.decoder.layers.mlp.linear_fc1.weight")
    arguments = ["--model", folder, "--prompts", world / "good.jsonl", "--out", tmp_path / "g.jsonl"]
    sentence = refused(capsys, "generate", *arguments)
    assert "a tensor is missing" in sentence and "linear_fc1.weight" in sentence and not (tmp_path / "g.jsonl").exists()


def test_a_missing_chunk_and_a_torn_one(world, tmp_path, capsys):
    folder = broken(world, tmp_path)
    chunk = folder / "model_weights" / "model.output_layer.weight" / "0.0"
    arguments = ["generate", "--model", folder, "--prompts", world / "good.jsonl", "--out", tmp_path / "g.jsonl"]
    chunk.write_bytes(chunk.read_bytes()[:-2])
    assert "a chunk has the wrong size" in refused(capsys, *arguments)
    chunk.unlink()
    assert "a chunk is missing" in refused(capsys, *arguments)
    assert not (tmp_path / "g.jsonl").exists()


def test_a_shape_that_does_not_fit(world, tmp_path, capsys):
    folder = broken(world, tmp_path)
    config = yaml.safe_load((folder / "model_config.yaml").read_text())
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**config, "ffn_hidden_size": 256}))
    arguments = ["generate", "--model", folder, "--prompts", world / "good.jsonl", "--out", tmp_path / "g.jsonl"]
    sentence = refused(capsys, *arguments)
    assert "does not fit the model's config" in sentence and "(4, 128, 64), expected (4, 256, 64)" in sentence


def test_tp_of_a_file_verb(world, tmp_path, capsys):
    arguments = ["--model", world / "policy", "--prompts", world / "good.jsonl", "--out", tmp_path / "g.jsonl"]
    assert "tp does not divide the model's KV groups" in refused(capsys, "generate", *arguments, "--tp", 4)
    assert "pp does not divide the model's layers" in refused(capsys, "generate", *arguments, "--pp", 3)
    assert "generate.top_p" in refused(capsys, "generate", *arguments, "--top-p", 0)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "an empty file"),
        ('{"prompt": " "}\n', "rows.jsonl:1: prompt has no text"),
        ('\n{"prompt": \n', "rows.jsonl:2: broken JSON"),
    ],
)
def test_a_file_without_a_usable_row(text, expected, world, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(text)
    arguments = ["--model", world / "policy", "--prompts", tmp_path / "rows.jsonl", "--out", tmp_path / "g.jsonl"]
    assert expected in refused(capsys, "generate", *arguments)
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_rows_that_are_not_there(world, tmp_path, capsys):
    arguments = ["--model", world / "policy", "--prompts", tmp_path / "none.jsonl", "--out", tmp_path / "g.jsonl"]
    assert "cannot read the rows" in refused(capsys, "generate", *arguments)
    assert "there is no such file" in refused(
        capsys, "run", world / "small.yaml", "data.prompts=none.jsonl", "--out", tmp_path
    )


@pytest.mark.parametrize("word", ["select.decontaminate=[{}]", "select.likeness={}"])
def test_what_selection_will_hold_rows_against_is_missed_before_anything_is_generated(word, world, tmp_path, capsys):
    for path in (tmp_path / "none.jsonl", tmp_path):
        sentence = refused(capsys, "run", world / "small.yaml", word.format(path), "--out", tmp_path / "run")
        assert "there is no such file" in sentence and word.partition("=")[0] in sentence
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_told_before_anything_is_generated(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    words = ("select.pii=drop", "select.pii_engine=presidio", "--out", tmp_path / "run")
    assert "presidio is not installed" in refused(capsys, "run", world / "small.yaml", *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_config(world, tmp_path, capsys):
    out = tmp_path / "run"
    Run.open(out, load(str(world / "small.yaml")), writer=True).close()
    before = (out / "run.yaml").read_bytes()
    sentence = refused(capsys, "run", world / "small.yaml", "run.seed=7", "--out", out)
    assert "the folder holds a run of another config" in sentence and "run.seed (run: 1234, asked: 7)" in sentence
    assert (out / "run.yaml").read_bytes() == before


def test_a_full_folder_that_is_no_run(world, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    sentence = refused(capsys, "run", world / "small.yaml", "--out", tmp_path)
    assert "the folder is full and is no run" in sentence and os.listdir(tmp_path) == ["thesis.tex"]


@pytest.fixture
def finished(world, tmp_path) -> list[str]:
    """The words of a run that is finished: every stage committed by hand, no model trained."""
    words = [str(world / "small.yaml"), "run.rounds=1", "sft.enabled=false", "reward.enabled=false"]
    folder = tmp_path / "run" / "round-0"
    for name in ("prompts", "responses", "scored", "decisions"):
        store = StageStore(folder / name, "made by hand", 2, 2)
        store.commit(store.groups[0], [{"id": "a"}, {"id": "b"}])
        store.finish({"rows_in": 2, "kept": 2})
    commit_rows(folder / "datasets" / "sft.jsonl", [{"id": "a"}])
    digests = {"sft.jsonl": digest(folder / "datasets" / "sft.jsonl")}
    commit_file(folder / "datasets" / "summary.json", json.dumps({"digests": digests, "totals": {}}).encode())
    nothing = {"policy": None, "reward": None}
    commit_json(folder / "evaluation.json", {**nothing, "before": nothing})
    folder.rename(tmp_path / "aside")  # a folder becomes a run while it is empty
    Run.open(folder.parent, load(words[0], words[1:]), writer=True).close()
    (tmp_path / "aside").rename(folder)
    return ["run", *words, "--out", str(folder.parent)]


def test_a_finished_run_is_left_alone_and_says_so(finished, capsys, monkeypatch):
    monkeypatch.setattr(Session, "start", lambda self, work: pytest.fail("ranks were started"))
    assert cli.main(finished) == 0
    shown = capsys.readouterr().out
    assert "nothing to do: all 1 rounds" in shown and "where things lie" in shown


def test_what_is_missing_from_a_finished_run_is_made_again(finished, monkeypatch):
    monkeypatch.setattr(Session, "start", lambda self, work: 77)
    (Path(finished[-1]) / "round-0" / "datasets" / "sft.jsonl").write_text("altered")
    assert cli.main(finished) == 77  # the stage will say what is wrong
    (Path(finished[-1]) / "round-0" / "evaluation.json").unlink()
    assert cli.main(finished) == 77
    assert cli.main([*finished, "run.rounds=2"]) == 77


def test_words_that_do_not_exist(capsys):
    assert "No such command 'rum'" in refused(capsys, "rum", "tiny")
    assert "No such option" in refused(capsys, "run", "tiny", "--outt", "x")
    assert "there is no such stage" in refused(capsys, "stage", "generat", "tiny")
    assert "the folder is no run" in refused(capsys, "report", "nowhere")


def test_only_rank_zero_says_it(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["plan", "tinny"]) == 2
    assert capsys.readouterr().err == ""


def test_a_defect_of_ours_keeps_its_traceback_in_a_file(capsys, monkeypatch):
    from nemo_sdg import plan

    monkeypatch.setattr(plan, "make", lambda *args, **kwargs: 1 / 0)
    assert cli.main(["plan", "tiny"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ZeroDivisionError" in error and "Traceback" not in error
    log = Path(error.split()[-1])
    assert "division by zero" in log.read_text()
    log.unlink()


def test_generate_and_score_on_files(world, tmp_path):
    """Good rows go on, faulty ones are set aside with file, line and reason; four ranks give the text of one."""
    outputs = []
    for name, topology in (("one", []), ("four", ["--tp", "2", "--pp", "2"])):
        out = tmp_path / f"{name}.jsonl"
        arguments = [
            "--prompts",
            world / "prompts.jsonl",
            "--out",
            out,
            "--samples",
            2,
            "--max-tokens",
            6,
            "--dtype",
            "fp64",
        ]
        done = shell("generate", "--model", world / "policy", *arguments, *topology)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert "4 responses from 2 rows" in done.stdout and "3 faulty rows were set aside" in done.stdout
        assert "warn" not in done.stdout.lower()  # what Megatron prints went to the log
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["id"] for row in rows] == ["a#0", "a#1", "e#0", "e#1"] and rows[2]["colour"] == "red"
        outputs.append(rows)
        faults = [json.loads(line) for line in (tmp_path / f"{name}.jsonl.faulty.jsonl").read_text().splitlines()]
        assert [fault["line"] for fault in faults] == [2, 3, 4]
        assert {fault["file"] for fault in faults} == {str(world / "prompts.jsonl")}
        assert "longer than the context" in faults[2]["reason"]
    assert outputs[0] == outputs[1]


def test_score_names_five_attributes(world, tmp_path):
    rows = [
        {"id": "short", "prompt": "a", "response": "b", "note": 1},
        {"id": "long", "prompt": "a", "response": "b " * 200},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scored.jsonl"
    done = shell("score", "--model", world / "reward", "--input", tmp_path / "rows.jsonl", "--out", out, "--tp", "2")
    assert done.returncode == 0, done.stderr
    assert "1 faulty rows were set aside" in done.stdout
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["id"] == "short" and row["note"] == 1 and tuple(row["scores"]) == ATTRIBUTES
    assert all(math.isfinite(score) for score in row["scores"].values())
    (fault,) = [json.loads(line) for line in (tmp_path / "scored.jsonl.faulty.jsonl").read_text().splitlines()]
    assert fault["line"] == 2 and "the conversation is longer than the context" in fault["reason"]


def test_a_prompt_longer_than_the_context(world, tmp_path):
    arguments = ["--prompts", world / "long.jsonl", "--out", tmp_path / "g.jsonl", "--tp", "2"]
    done = shell("generate", "--model", world / "policy", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "the prompt is longer than the context" in done.stderr and os.listdir(tmp_path) == []


def test_sampling_options_reach_the_settings(monkeypatch):
    from nemo_sdg import file_verbs

    seen = []
    monkeypatch.setattr(file_verbs, "generate", lambda config, *rest: seen.append(config) or 0)
    words = "generate --model m --prompts p --out o --samples 2 --max-tokens 30 --min-tokens 20 --temperature 0.5"
    words += " --top-p 0.9 --top-k 7 --min-p 0.1 --repetition-penalty 1.3 --stop a --stop bc --logprobs"
    words += " --seed 5 --strict"
    assert cli.main(words.split()) == 0
    assert seen[0].generate == Generate(
        samples=2, max_tokens=30, min_tokens=20, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.3,
        stop=["a", "bc"], logprobs=True,
    )  # fmt: skip
    assert (seen[0].run.seed, seen[0].run.strict) == (5, True)


def test_sampling_options_reach_the_rows(world, tmp_path):
    """A repetition penalty that makes every token new, greedily, with a log-probability for each."""
    out, words = tmp_path / "g.jsonl", ["--max-tokens", 30, "--min-tokens", 20, "--temperature", 0, "--logprobs"]
    arguments = ["generate", "--model", world / "policy", "--prompts", world / "good.jsonl", "--out", out, *words]
    done = shell(*arguments, "--repetition-penalty", 1000)
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    tokens = row["response_token_ids"]
    assert len(tokens) >= 20 and len(set(tokens)) == len(tokens) == len(row["response_logprobs"])


def test_strict_names_the_line_and_writes_nothing(world, tmp_path, capsys):
    arguments = ["--model", world / "policy", "--out", tmp_path / "g.jsonl", "--strict"]
    assert f"{world}/prompts.jsonl:2: " in refused(capsys, "generate", "--prompts", world / "prompts.jsonl", *arguments)
    (tmp_path / "two.jsonl").write_text((world / "good.jsonl").read_text() + "\n" + (world / "long.jsonl").read_text())
    done = shell("generate", "--prompts", tmp_path / "two.jsonl", *arguments, "--tp", 2)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{tmp_path}/two.jsonl:3, row d#0: the prompt is longer than the context" in done.stderr
    rows = [{"id": "s", "prompt": "a", "response": "b"}, {"id": "l", "prompt": "a", "response": "b " * 200}]
    (tmp_path / "rows").mkdir()
    for number, row in enumerate(rows):
        (tmp_path / f"rows/{number}.jsonl").write_text(json.dumps(row) + "\n")
    done = shell("score", "--model", world / "reward", "--input", tmp_path / "rows", *arguments[2:])
    assert done.returncode == 2 and f"{tmp_path}/rows/1.jsonl:1, row l: the conversation is longer" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["rows", "two.jsonl"]
