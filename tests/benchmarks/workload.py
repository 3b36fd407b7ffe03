"""What the engine's benchmark runs: a model of 25M parameters; prompts, responses and conversations of drawn lengths.

Lengths are quantiles of a log-normal distribution, in an order drawn by a fixed seed, so that the same lengths come up
on every machine and every block of 64 has nearly the same mix: a rate over 64 prompts compares with one over 256.
Tokens are ordinary pieces, drawn evenly: what is computed depends on how many there are, not on which.
"""

from __future__ import annotations

import dataclasses
import io
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from folders import make_folder, make_tokenizer

from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.console import Console
from nemo_sdg.models.shapes import NemotronShape, sizes

BLOCK = 64
"""Prompts of one run of transformers, and what every block of the workload has the same mix of."""
NUM_PROMPTS = 256
MEDIAN, NINETY_FIFTH, LONGEST = 40, 400, 720
"""Response tokens. The longest stands for max_tokens: with it, static batches of 16 to 128 rows are busy for 20 to 13 %
of their time."""
PROMPT_MEDIAN, PROMPT_SIGMA, PROMPT_RANGE = 48, 0.6, (16, 256)
CONVERSATION_MEDIAN, CONVERSATION_SIGMA, CONVERSATION_RANGE = 350, 0.8, (32, 1500)
"""Tokens of a conversation to be scored, as in HelpSteer2 by our estimate: its two public columns hold about 2,270
characters a row (the parquet size of a copy, burtenshaw/helpsteer-2-plus), some 500 tokens; the mean here is 450."""
SHARED_PROMPT = 512
FAN_OUT = 8
"""Samples of one prompt, responses to one prompt."""
_FIRST_PIECE, _VOCABULARY = 10, 384
"""Below the first are the control pieces and the markers of the prompt format, which end a response or mean padding."""


def shape() -> NemotronShape:
    """The tiny architecture at about 25M parameters."""
    return dataclasses.replace(
        sizes()["tiny"], num_layers=8, hidden_size=512, ffn_hidden_size=2048, num_attention_heads=8,
        num_query_groups=4, kv_channels=64, vocab_size=_VOCABULARY, seq_length=2048, init_method_std=0.006,
    )  # fmt: skip


@dataclass(frozen=True)
class Folders:
    """The same random weights as released folders and as Hugging Face folders."""

    policy: Path
    reward: Path
    policy_hf: Path
    reward_hf: Path


def make_folders(root: Path) -> Folders:
    tokenizer = make_tokenizer(root / "tokenizer.model", _VOCABULARY)
    for name, reward in (("policy", False), ("reward", True)):
        made = make_folder(root / name, shape(), tokenizer, reward=reward, seed=int(reward))
        convert(str(made), root / f"{name}_hf", "hf", Console(io.StringIO()))
    return Folders(root / "policy", root / "reward", root / "policy_hf", root / "reward_hf")


@dataclass(frozen=True)
class Job:
    """One response to be generated: its prompt, and how many tokens it is forced to have."""

    prompt_ids: list[int]
    length: int


def jobs(count: int = NUM_PROMPTS, seed: int = 0) -> list[Job]:
    """Prompts with response lengths of median 40 and 95th percentile 400 (sigma 1.4), cut at `LONGEST`."""
    rng = np.random.default_rng(seed)
    sigma = math.log(NINETY_FIFTH / MEDIAN) / statistics.NormalDist().inv_cdf(0.95)
    lengths = _quantiles(count, MEDIAN, sigma, (1, LONGEST), rng)
    prompts = _quantiles(count, PROMPT_MEDIAN, PROMPT_SIGMA, PROMPT_RANGE, rng)
    return [Job(_pieces(prompt, rng), length) for prompt, length in zip(prompts, lengths)]


def conversations(count: int, seed: int = 1) -> list[list[int]]:
    """Encoded conversations of HelpSteer2-like lengths that share nothing, in no order."""
    rng = np.random.default_rng(seed)
    lengths = _quantiles(count, CONVERSATION_MEDIAN, CONVERSATION_SIGMA, CONVERSATION_RANGE, rng)
    return [_pieces(length, rng) for length in lengths]


def fans(prompts: int, seed: int = 2) -> list[list[int]]:
    """Encoded conversations, `FAN_OUT` in a row on one prompt of 512 tokens, with responses as in `jobs`.

    That is what a round scores: the responses that were generated.
    """
    rng = np.random.default_rng(seed)
    lengths = [job.length for job in jobs(prompts * FAN_OUT, seed)]
    shared = [_pieces(SHARED_PROMPT, rng) for _ in range(prompts)]
    return [shared[row // FAN_OUT] + _pieces(length, rng) for row, length in enumerate(lengths)]


def pieces(count: int, length: int, seed: int) -> list[list[int]]:
    """`count` different texts of `length` tokens."""
    rng = np.random.default_rng(seed)
    return [_pieces(length, rng) for _ in range(count)]


def _pieces(length: int, rng: np.random.Generator) -> list[int]:
    return rng.integers(_FIRST_PIECE, _VOCABULARY, length).tolist()


def _quantiles(
    count: int, median: float, sigma: float, limits: tuple[int, int], rng: np.random.Generator
) -> list[int]:
    """`count` evenly spaced quantiles of a log-normal distribution, cut to the limits, dealt to blocks of `BLOCK`.

    Neighbouring quantiles go to different blocks, and each block is shuffled.
    """
    normal = statistics.NormalDist()
    values = [median * math.exp(sigma * normal.inv_cdf((index + 0.5) / count)) for index in range(count)]
    values = [min(limits[1], max(limits[0], round(value))) for value in values]
    num_blocks = max(1, count // BLOCK)
    blocks: list[list[int]] = [[] for _ in range(num_blocks)]
    for start in range(0, count, num_blocks):
        hand = values[start : start + num_blocks]
        for block, value in zip(rng.permutation(num_blocks), hand):
            blocks[block].append(value)
    for block in blocks:
        rng.shuffle(block)
    return [value for block in blocks for value in block]
