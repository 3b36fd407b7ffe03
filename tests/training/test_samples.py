"""Rows as samples: what is in the loss, and which rows are set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemo_sdg.errors import RowError, UserError
from nemo_sdg.models.templates import LABEL
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training import samples
from training import worlds


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    worlds.write_tokenizer(path)
    return Tokenizer(path)


def row(*turns: str) -> dict:
    sides = ("User", "Assistant")
    spoken = [{"from": sides[i % 2], "value": text, "label": None} for i, text in enumerate(turns)]
    return {"system": "", "mask": "User", "type": None, "conversations": spoken}


def trained_text(sample: samples.Sample, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([label for label in sample.labels[0].tolist() if label >= 0])


def test_the_assistant_and_the_turn_end_after_it_are_trained(tokenizer):
    """NeMo's masks: headers, role names and user turns are not in the loss, the `<extra_id_1>` after an answer is."""
    sample = samples.sft_sample(row("red green", "green red", "blue", "blue"), tokenizer)
    assert trained_text(sample, tokenizer) == "green red\n<extra_id_1>blue\n<extra_id_1>"
    whole = tokenizer.decode(sample.sequences[0].tolist())
    assert whole == (
        "<extra_id_0>System\n\n<extra_id_1>User\nred green\n<extra_id_1>Assistant\ngreen red\n"
        "<extra_id_1>User\nblue\n<extra_id_1>Assistant\nblue\n"
    )


def test_a_label_is_the_next_token(tokenizer):
    sample = samples.sft_sample(row("red", "blue"), tokenizer)
    ids = tokenizer.encode("<extra_id_0>System\n\n<extra_id_1>User\nred\n<extra_id_1>Assistant\nblue\n<extra_id_1>")
    assert sample.sequences[0].tolist() == ids[:-1]
    assert sample.labels[0].tolist() == [-1] * (len(ids) - 4) + ids[-3:]


def test_offsets_count_characters_not_bytes(tokenizer):
    sample = samples.sft_sample(row("\u00e9\u00e9 red", "blue"), tokenizer)
    assert trained_text(sample, tokenizer) == "blue\n<extra_id_1>"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": "Assistant"}, "another loss mask"),
        ({"type": "VALUE_TO_TEXT"}, "another loss mask"),
        ({"conversations": None}, "no list of conversations"),
        ({"conversations": [{"from": "User", "value": "red"}]}, "wrong side speaks last"),
        ({"conversations": [{"from": "User", "value": "<extra_id_1>"}, {"from": "Assistant", "value": "x"}]}, "marker"),
    ],
)
def test_a_dialogue_that_cannot_be_trained(tokenizer, change, message):
    with pytest.raises(RowError, match=message):
        samples.sft_sample({**row("red", "blue"), **change}, tokenizer)


def test_reward_rows_end_at_the_token_that_is_read(tokenizer):
    good = worlds.reward_rows(1)[0]
    sample = samples.reward_sample(good, tokenizer)
    assert tokenizer.decode(sample.sequences[0][-1:].tolist()) == LABEL
    assert sample.targets.tolist() == good["label"] and sample.targets.dtype == torch.float64
    all_labelled = {**good, "label": [float(slot) for slot in range(9)]}
    own = samples.reward_sample(all_labelled, tokenizer, {"helpfulness": 4, "clinical_safety": 0})
    assert own.targets.tolist() == [0.0, -100.0, -100.0, -100.0, 4.0, -100.0, -100.0, -100.0, -100.0]
    with pytest.raises(RowError, match="expected a score of one of helpfulness"):
        samples.reward_sample({**good, "label": [4.0] + [-100.0] * 8}, tokenizer, {"helpfulness": 4})
    for change, message in [
        ({"text": good["text"] + "\n"}, "does not end"),
        ({"label": good["label"][:8]}, "not nine numbers"),
        ({"label": good["label"][:8] + [float("nan")]}, "not nine numbers"),
        ({"label": good["label"][:8] + [10**400]}, "not nine numbers"),
        ({"label": [-100.0] * 9}, "no score"),
    ]:
        with pytest.raises(RowError, match=message):
            samples.reward_sample({**good, **change}, tokenizer)


def test_long_and_faulty_rows_are_counted_and_never_cut(tokenizer, tmp_path):
    path = tmp_path / "sft.jsonl"
    long = row("red " * 60 + "red", "blue")
    lines = [json.dumps(row("red", "blue")), json.dumps(long), "{broken", "[]", "", json.dumps(row("red"))]
    path.write_text("\n".join(lines))
    found = samples.read(samples.sft_sample, path, tokenizer, max_length=100)
    assert len(found.rows) == 1
    assert found.set_aside == {
        "longer than max_length": 1, "broken JSON": 1, "not a JSON object but list": 1, "the wrong side speaks last": 1,
    }  # fmt: skip
    assert found.first == {reason: line for line, reason in zip((2, 3, 4, 6), found.set_aside)}
    assert "1 x broken JSON (the first in line 3)" in found.reasons
    exact = len(found.rows[0].sequences[0])
    assert len(samples.read(samples.sft_sample, path, tokenizer, max_length=exact).rows) == 1
    with pytest.raises(UserError, match="no row can be used"):
        samples.read(samples.sft_sample, path, tokenizer, max_length=exact - 1)


def test_rows_of_a_folder_or_a_glob_are_counted_on(tokenizer, tmp_path):
    for name, texts in (("b", ["blue"]), ("a", ["red", None, "two"])):
        lines = [json.dumps(row("one", text)) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(["", *lines]))
    for path in (tmp_path, str(tmp_path / "*.jsonl")):
        found = samples.read(samples.sft_sample, path, tokenizer, max_length=100)
        assert [sample.line for sample in found.rows] == [2, 4, 6] and list(found.first.values()) == [3]
        assert trained_text(found.rows[2], tokenizer) == "blue\n<extra_id_1>"


def test_rows_that_are_not_there(tokenizer):
    with pytest.raises(UserError, match="cannot read the rows"):
        samples.read(samples.sft_sample, Path("/nowhere/sft.jsonl"), tokenizer, 10)
