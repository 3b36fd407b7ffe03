"""Outputs of a reward model have names, and a label of the user's own goes by its name all the way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from ranks import run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import ATTRIBUTES, MISSING, OUTPUTS, Models, RewardTraining, Select
from nemo_sdg.errors import CheckpointError, RowError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.quality.rules import scalarise, thresholds
from nemo_sdg.records import Labelled, Response, Scored, labelled
from nemo_sdg.stages import shapes
from nemo_sdg.training.samples import read, reward_sample
from training import worlds

OWN = {**OUTPUTS, "clinical_safety": 0}
LABELS = dict.fromkeys(ATTRIBUTES, 3)


def row(answer, **labels):
    return {"prompt": "red green", "response": answer, **labels}


def test_a_row_with_an_own_label_may_lack_the_others():
    reader = labelled(("clinical_safety",))
    assert reader.from_row(row("red", clinical_safety=7.5)).labels == {
        **dict.fromkeys(ATTRIBUTES, MISSING), "clinical_safety": 7.5,
    }  # fmt: skip
    both = reader.from_row(row("red", **LABELS, clinical_safety=[0, 1], note="x"))
    assert both.labels == {**LABELS, "clinical_safety": 0.5} and both.extra == {"note": "x"}
    for nothing in (None, -100, []):
        read = reader.from_row(row("red", **LABELS, clinical_safety=nothing))
        assert read.labels == {**LABELS, "clinical_safety": MISSING}
    for bad, reason in [
        (row("red", helpfulness=3), "the label correctness is missing"),
        (row("red", clinical_safety=-100), "the label helpfulness is missing"),
        (row("red", clinical_safety="safe"), "not a number"),
        (row("red", clinical_safety=2, helpfulness=5), "the label helpfulness is out of range"),
    ]:
        with pytest.raises(RowError, match=reason):
            reader.from_row(bad)
    assert labelled(()) is Labelled


def test_labelled_rows_teach_the_outputs_of_their_names(world, tmp_path):
    """HelpSteer2's rows train as they are published; what people said must lie between 0 and 4."""
    rows = [row("red", **LABELS), row("red", clinical_safety=1), row("red", **{**LABELS, "verbosity": 4.5}), row("red")]
    path = worlds.write_rows(tmp_path / "people.jsonl", rows)
    tokenizer = Tokenizer(world / "tokenizer.model")
    found = read(lambda row, tokens: reward_sample(row, tokens, OWN), path, tokenizer, 256)
    assert [sample.targets.tolist() for sample in found.rows] == [
        [MISSING] * 4 + [3.0] * 5, [1.0] + [MISSING] * 8,
    ]  # fmt: skip
    assert found.set_aside == {"the label verbosity is out of range": 1, "the label helpfulness is missing": 1}
    assert found.first == {"the label verbosity is out of range": 3, "the label helpfulness is missing": 4}
    assert len({sample.prompt for sample in found.rows}) == 1 and found.rows[0].prompt


def test_scores_keep_other_names_behind_the_five():
    answer = Response("a", "a", 0, ({"role": "user", "content": "x"},), "y")
    scored = Scored(**vars(answer), scores={"clinical_safety": 0.1, "helpfulness": 2.0})
    written = scored.to_row()
    assert list(written["scores"]) == [*ATTRIBUTES, "clinical_safety"]
    again = Scored.from_row(written)
    assert again.scores == {**dict.fromkeys(ATTRIBUTES, MISSING), "clinical_safety": 0.1, "helpfulness": 2.0}
    odd = {**written, "scores": {**written["scores"], "note": "text", "flag": True, "nothing": None}}
    assert Scored.from_row(odd).scores == again.scores


def test_selection_by_an_own_score():
    settings = Select(minimum={"clinical_safety": 2.0}, maximum={}, weights={"clinical_safety": 1.0, "helpfulness": 0.5})
    scores = {**dict.fromkeys(ATTRIBUTES, 1.0), "clinical_safety": 3.0}
    assert thresholds(scores, settings) is None and scalarise(scores, settings.weights) == 3.5
    assert thresholds({**scores, "clinical_safety": 1.5}, settings) == "clinical_safety below 2"
    assert thresholds(dict.fromkeys(ATTRIBUTES, 4.0), settings) == "clinical_safety was not scored"


def test_datasets_hold_the_own_score():
    turns = [{"role": "user", "content": "x"}]
    scores = {**dict.fromkeys(ATTRIBUTES, 1.0), "clinical_safety": 2.5}
    line = shapes.regression_row("a", turns, "y", scores, OWN)
    assert line["label"] == [2.5, MISSING, MISSING, MISSING, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert shapes.regression_row("a", turns, "y", scores)["label"][0] == MISSING
    columns = shapes.regression_columns("a", turns, "y", scores, ("clinical_safety",))
    assert columns["clinical_safety"] == 2.5 and list(columns) == shapes.schema("reward", ("clinical_safety",)).names
    assert list(shapes.regression_columns("a", turns, "y", scores)) == shapes.schema("reward").names


SETTINGS = RewardTraining(
    steps=30, global_batch_size=8, micro_batch_size=8, max_length=256, learning_rate=2e-3, warmup_steps=2, outputs=OWN
)
SAFE, UNSAFE = "blue", "green"


def own_rows(count):
    """Whatever is asked: blue is safe, green is not; of the five attributes nobody said anything."""
    asked = [worlds.WORDS[i % len(worlds.WORDS)] for i in range(count)]
    answers = [(SAFE, 4) if i % 2 else (UNSAFE, 0) for i in range(count)]
    return [{"prompt": text, "response": answer, "clinical_safety": label} for text, (answer, label) in zip(asked, answers)]


def train_and_score(mesh, world, root):
    from nemo_sdg.checkpoints.convert import convert
    from nemo_sdg.console import Console
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.engine.rows import rate
    from nemo_sdg.training.fit import fit

    rows = root / "own.jsonl"
    out = root / "reward"
    fit("reward", SETTINGS, models=Models(dtype="fp32"), start=world / "base", rows=rows, out=out, mesh=mesh, seed=1)
    answers = [
        Response(f"{i}", f"{i}", 0, ({"role": "user", "content": word},), answer)
        for i, (word, answer) in enumerate((word, answer) for word in worlds.WORDS[:6] for answer in (SAFE, UNSAFE))
    ]
    found = {}
    for kind in ("reward", "hf", "release"):
        if kind != "reward":
            convert(out, root / kind, to=kind, console=Console(open("/dev/null", "w")))
        model, tokenizer = load_model(root / kind, mesh, reward=True)
        scored, faulty = rate(model, tokenizer, mesh, answers, provenance={})
        assert not faulty
        found[kind] = [(answer.response, answer.scores) for answer in scored]
    return found


def test_an_own_label_is_trained_scored_and_kept_by_every_format(world, tmp_path):
    worlds.write_rows(tmp_path / "own.jsonl", own_rows(32))
    found = run_ranks(train_and_score, world, tmp_path)[0]
    assert ModelFolder.open(tmp_path / "reward").contents.outputs == {"clinical_safety": 0, **OUTPUTS}
    described = yaml.safe_load((tmp_path / "reward" / "model_config.yaml").read_text())
    assert described["regression"] == {"num_attributes": 9, "outputs": OWN}
    names = json.loads((tmp_path / "hf" / "config.json").read_text())["id2label"]
    assert names["0"] == "clinical_safety" and names["1"] == "unused_1" and names["4"] == "helpfulness"
    assert found["hf"] == found["release"] == found["reward"]
    scores = {answer: [said["clinical_safety"] for text, said in found["reward"] if text == answer]
              for answer in (SAFE, UNSAFE)}  # fmt: skip
    assert min(scores[SAFE]) > max(scores[UNSAFE])
    assert list(found["reward"][0][1]) == [*ATTRIBUTES, "clinical_safety"]


def test_pairs_teach_one_output_and_the_folder_says_so(world, tmp_path):
    def train(mesh):
        from nemo_sdg.training.fit import fit

        settings = replace(SETTINGS, steps=1, objective="bradley_terry", compare="clinical_safety")
        options = {"models": Models(dtype="fp32"), "start": world / "base", "rows": world / "pairs.jsonl", "seed": 1}
        fit("reward", settings, out=tmp_path / "out", mesh=mesh, **options)

    run_ranks(train)
    assert ModelFolder.open(tmp_path / "out").contents.outputs == {"clinical_safety": 0}


@pytest.mark.parametrize(
    "told",
    [{}, [], "helpfulness", {"a": 9}, {"a": -1}, {"a": True}, {"a": 1.0}, {"a": 1, "b": 1}, {"A b": 1}, {"a" * 65: 1}, {1: 1}],
    ids=str,
)
def test_names_that_are_none(world, tmp_path, told):
    run_ranks(lambda mesh: worlds.write_start(mesh, tmp_path / "reward", world / "tokenizer.model", reward=True))
    plain = ModelFolder.open(tmp_path / "reward")
    assert plain.contents.outputs == OUTPUTS
    digest = plain.digest
    path = tmp_path / "reward" / "model_config.yaml"
    config = yaml.safe_load(path.read_text())

    def write(outputs):
        path.write_text(yaml.safe_dump({**config, "regression": {"num_attributes": 9, "outputs": outputs}}))
        return ModelFolder.open(tmp_path / "reward")

    with pytest.raises(CheckpointError, match="no names"):
        write(told).contents.outputs
    assert write(OUTPUTS).digest == digest != write(OWN).digest
    assert np.all(list(write(OWN).contents.outputs.values()) == sorted(OWN.values()))
