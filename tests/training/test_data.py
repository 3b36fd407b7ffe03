"""Rows as batches: what is in the loss, in which order rows come, how they are padded, which are set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemo_sdg.errors import RowError, UserError
from nemo_sdg.models.templates import LABEL
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training import data
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


def trained_text(example: data.Example, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([label for label in example.labels.tolist() if label >= 0])


def test_the_assistant_and_the_turn_end_after_it_are_trained(tokenizer):
    """NeMo's masks: headers, role names and user turns are not in the loss, the `<extra_id_1>` after an answer is."""
    example = data.sft_example(row("red green", "green red", "blue", "blue"), tokenizer)
    assert trained_text(example, tokenizer) == "green red\n<extra_id_1>blue\n<extra_id_1>"
    whole = tokenizer.decode(example.tokens.tolist())
    assert whole == (
        "<extra_id_0>System\n\n<extra_id_1>User\nred green\n<extra_id_1>Assistant\ngreen red\n"
        "<extra_id_1>User\nblue\n<extra_id_1>Assistant\nblue\n"
    )


def test_a_label_is_the_next_token(tokenizer):
    example = data.sft_example(row("red", "blue"), tokenizer)
    ids = tokenizer.encode("<extra_id_0>System\n\n<extra_id_1>User\nred\n<extra_id_1>Assistant\nblue\n<extra_id_1>")
    assert example.tokens.tolist() == ids[:-1]
    assert example.labels.tolist() == [-1] * (len(ids) - 4) + ids[-3:]


def test_offsets_count_characters_not_bytes(tokenizer):
    example = data.sft_example(row("\u00e9\u00e9 red", "blue"), tokenizer)
    assert trained_text(example, tokenizer) == "blue\n<extra_id_1>"


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
        data.sft_example({**row("red", "blue"), **change}, tokenizer)


def test_reward_rows_end_at_the_token_that_is_read(tokenizer):
    good = worlds.reward_rows(1)[0]
    example = data.reward_example(good, tokenizer)
    assert tokenizer.decode(example.tokens[-1:].tolist()) == LABEL
    assert example.labels.tolist() == good["label"] and example.labels.dtype == torch.float64
    for change, message in [
        ({"text": good["text"] + "\n"}, "does not end"),
        ({"label": good["label"][:8]}, "not nine numbers"),
        ({"label": good["label"][:8] + [float("nan")]}, "not nine numbers"),
        ({"label": [-100.0] * 9}, "no score"),
    ]:
        with pytest.raises(RowError, match=message):
            data.reward_example({**good, **change}, tokenizer)


def test_long_and_faulty_rows_are_counted_and_never_cut(tokenizer, tmp_path):
    path = tmp_path / "sft.jsonl"
    long = row("red " * 60 + "red", "blue")
    lines = [json.dumps(row("red", "blue")), json.dumps(long), "{broken", "[]", "", json.dumps(row("red"))]
    path.write_text("\n".join(lines))
    examples = data.read("sft", path, tokenizer, max_length=100)
    assert len(examples.rows) == 1
    assert examples.set_aside == {
        "longer than max_length": 1, "not JSON": 1, "not a JSON object": 1, "the wrong side speaks last": 1,
    }  # fmt: skip
    exact = len(examples.rows[0].tokens)
    assert len(data.read("sft", path, tokenizer, max_length=exact).rows) == 1
    with pytest.raises(UserError, match="nothing to train on"):
        data.read("sft", path, tokenizer, max_length=exact - 1)


def examples(count: int) -> list[data.Example]:
    return [data.Example(torch.full((5 + i,), i), torch.full((5 + i,), i)) for i in range(count)]


def batches(count: int = 10, **changes) -> data.GlobalBatches:
    options = {"steps": 5, "global_batch_size": 4, "seed": 1, **changes}
    return data.GlobalBatches("sft", examples(count), **options)


def test_each_epoch_holds_every_row_once_in_its_own_order():
    order = batches().order.tolist()
    assert len(order) == 20
    assert len(set(order[:8])) == 8 and set(range(10)) - set(order[:8]) <= set(order[8:12])  # the first epoch's end
    assert sorted(order) == sorted(list(range(10)) * 2)
    assert batches(seed=2).order.tolist() != order and batches().order.tolist() == order
    first, second = data._shuffle(10, 1, 0).tolist(), data._shuffle(10, 1, 1).tolist()
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_a_global_batch_is_the_same_whatever_is_padded_together():
    whole, pairs = batches(), batches(padded_together=2)
    assert whole.order.tolist() == pairs.order.tolist()
    for step in range(5):
        lengths = [len(whole.rows[i].tokens) for i in whole.order.tolist()[4 * step : 4 * step + 4]]
        assert lengths == sorted(lengths)
        assert whole.widths[step] == whole.step_widths[step] == -(-max(lengths) // 8) * 8
        assert pairs.widths[2 * step : 2 * step + 2] == [-(-max(pair) // 8) * 8 for pair in (lengths[:2], lengths[2:])]
        assert pairs.step_widths[step] == whole.step_widths[step]


def test_padding_is_in_no_loss():
    batch = batches().__getitems__([0, 1])
    for tokens_S, labels_S, length in zip(batch["tokens"], batch["labels"], batch["lengths"]):
        assert (labels_S[length:] == -1).all() and (tokens_S[length:] == 0).all() and (labels_S[:length] >= 0).all()
    assert batch["position_ids"][1].tolist() == list(range(batch["tokens"].size(1)))


def test_rows_that_are_not_there(tokenizer):
    with pytest.raises(UserError, match="cannot be read"):
        data.read("sft", Path("/nowhere/sft.jsonl"), tokenizer, 10)
