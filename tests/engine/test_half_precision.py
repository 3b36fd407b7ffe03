"""bf16 against fp32 on the same forced texts: the same next token, and near log-probabilities. On a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import run_ranks

from nemo_sdg.engine.ending import Ending
from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Request, Sampling
from nemo_sdg.engine.rows import tokenized
from nemo_sdg.engine.score import PackStep, encode, pack, score
from nemo_sdg.records import Labelled, Prompt, read_rows

pytestmark = pytest.mark.gpu
WORLD = "package:examples/tiny/"


def teacher_forced(mesh, dtype):
    """The most probable token after every token of 200 texts of the tiny world, through the packed path."""
    model, tokenizer = load_model(WORLD + "instruct", mesh, dtype=dtype)
    prompts = read_rows(WORLD + "data/heldout.jsonl", Prompt)[0][:200]
    texts = [tokenized(tokenizer, p) + tokenizer.encode(p.extra["answer"]) for p in prompts]
    tops = []
    with torch.no_grad():
        for made in pack(texts, 4096):
            places = np.concatenate([made.places(leaf) for _, leaf in made.leaves])
            ids = torch.tensor([made.token_ids], device=next(model.parameters()).device)
            logits = model(ids, None, None, inference_context=PackStep(model, made, len(made.token_ids), places))
            tops.append(logits[0].argmax(-1).cpu().numpy())
    return np.concatenate(tops)


class Forced(Ending):
    """Notes what the model chose, and goes on with what a text says."""

    def __init__(self, tokenizer, context, texts):
        super().__init__(tokenizer, context)
        self.texts, self.tops = texts, {name: [] for name in texts}

    def take(self, row, token, logprob):
        name = row.request.prompt_id
        self.tops[name].append(token)
        return super().take(row, self.texts[name][len(row.tokens)], logprob)


def decoded(mesh, dtype):
    """The most probable token at every place of 200 right answers, through prefill and decode steps that are forced."""
    model, tokenizer = load_model(WORLD + "instruct", mesh, dtype=dtype)
    prompts = read_rows(WORLD + "data/heldout.jsonl", Prompt)[0][:200]
    answers = {p.id: [*tokenizer.encode(p.extra["answer"] + "\n"), tokenizer.turn_id] for p in prompts}
    engine = Engine(model, tokenizer, mesh, slots=16)
    engine._ending = Forced(tokenizer, engine.context, answers)
    for prompt in prompts:
        engine.submit(Request(prompt.id, 0, tokenized(tokenizer, prompt), Sampling(max_tokens=60, temperature=0.0)))
    while not engine.idle:
        engine.step()
    return np.concatenate([engine._ending.tops[p.id] for p in prompts])


def agreement(one, other):
    assert len(one) == len(other) > 500
    return float(np.mean(one == other))


def check(function):
    wide, half = (run_ranks(function, dtype)[0] for dtype in ("fp32", "bf16"))
    assert agreement(wide, half) >= 0.99, f"{agreement(wide, half):.2%} of the next tokens are the same"


def rewards(mesh, dtype):
    model, tokenizer = load_model(WORLD + "reward", mesh, dtype=dtype, reward=True)
    rows = read_rows(WORLD + "data/helpsteer2_validation.jsonl", Labelled)[0][:100]
    turns = [[*row.messages, {"role": "assistant", "content": row.response}] for row in rows]
    return score(model, tokenizer, mesh, [encode(tokenizer, turn, model.max_sequence_length) for turn in turns])


@pytest.mark.parametrize("function", [teacher_forced, decoded])
def test_the_next_token_in_bf16(function):
    check(function)


def test_rewards_in_bf16():
    wide, half = (run_ranks(rewards, dtype)[0][:, 4:] for dtype in ("fp32", "bf16"))
    assert np.abs(wide - half).max() < 0.2 and np.corrcoef(wide[:, 0], half[:, 0])[0, 1] > 0.999

