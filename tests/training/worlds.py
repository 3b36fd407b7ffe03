"""A start model, a tokenizer and training rows for the tests of this folder: small, random, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from nemo_sdg.models import templates
from nemo_sdg.models.shapes import NemotronShape

SHAPE = NemotronShape(
    num_layers=4, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, num_query_groups=2, kv_channels=8,
    vocab_size=128, seq_length=256, init_method_std=0.1,
)  # fmt: skip

WORDS = "add sort reverse red green blue one two three four five six seven eight nine".split()


def write_tokenizer(path: Path) -> None:
    """A SentencePiece model with the pieces of the prompt format; no dummy prefix, as in the released ones."""
    text = [" ".join(WORDS), "System User Assistant", templates.REWARD_SYSTEM_PROMPT]
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=file, vocab_size=SHAPE.vocab_size, hard_vocab_limit=False,
            model_type="char", pad_id=0, unk_id=1, bos_id=2, eos_id=3, add_dummy_prefix=False,
            remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
            user_defined_symbols=[f"<extra_id_{i}>" for i in range(3)] + ["\n"] + WORDS,
        )  # fmt: skip


def write_start(
    mesh: Any,
    path: Path,
    tokenizer: Path,
    *,
    reward: bool = False,
    head_bias: bool = False,
    shape: NemotronShape = SHAPE,
) -> None:
    """A released folder with random weights; call it on one rank's mesh."""
    from nemo_sdg.checkpoints import save
    from nemo_sdg.models import nemotron

    torch.manual_seed(7)
    config = nemotron.transformer_config(shape, initialize=True)
    model = nemotron.build(config, shape, pre_process=True, post_process=True, reward=reward, head_bias=head_bias)
    save.save(model, path, shape, tokenizer.read_bytes(), mesh)


def sft_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Dialogues of one or two rounds, of different lengths."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        turns = []
        for _ in range(draw.choice((1, 1, 2))):
            asked = [draw.choice(WORDS) for _ in range(draw.randint(1, 5))]
            turns.append({"from": "User", "value": " ".join(asked), "label": None})
            turns.append({"from": "Assistant", "value": " ".join(reversed(asked)), "label": None})
        rows.append({"system": "", "mask": "User", "type": None, "conversations": turns})
    return rows


def reward_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with labels for outputs 4 to 8, some of them missing."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        asked = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 5)))
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": asked[::-1] + "."}]
        label = [-100.0] * 4 + [draw.choice((-100.0, 0.0, 1.0, 2.0, 3.0, 4.0)) for _ in range(4)] + [1.0]
        rows.append({"text": templates.reward_prompt(messages), "label": label})
    return rows


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs in NeMo-Aligner's preference format, their rewards apart by 0.5 to 3."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        asked = [draw.choice(WORDS) for _ in range(draw.randint(1, 5))]
        prompt = templates.instruct_prompt([{"role": "user", "content": " ".join(asked)}])
        answers = (" ".join(reversed(asked)), " ".join(asked[:2]) + ".")
        chosen, rejected = (f"{answer}\n{templates.TURN}" for answer in answers)
        reward = draw.choice((0.5, 1.0, 2.0, 3.0))
        rows.append({"prompt": prompt, "chosen_response": chosen, "rejected_response": rejected,
                     "chosen_reward": reward + 1.0, "rejected_reward": 1.0})  # fmt: skip
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
