"""Measures a policy and a reward model on rows that no training has seen.

The policy answers greedily and is right or wrong; the reward model scores rows that carry true attributes.
Every replica does its share, and every rank returns the whole result.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.engine.generate import Request, check_fits, generate
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.sampling import Sampling
from nemo_sdg.engine.score import encode, named, score
from nemo_sdg.errors import RowError
from nemo_sdg.evaluation.agreement import agreement
from nemo_sdg.evaluation.exact_match import exact_match
from nemo_sdg.models.templates import instruct_prompt
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Labelled, Prompt, read_rows


def policy(model: Path | str, rows: str, config: RunConfig, mesh: Mesh, console: Console) -> dict[str, Any]:
    """Exact match of greedy answers on {"prompt", "answer"} rows: {"exact_match", "n", "faulty"}."""
    prompts, faults = read_rows(rows, Prompt)
    asked = [row for row in prompts if isinstance(row.extra.get("answer"), str)]
    faulty = len(faults) + len(prompts) - len(asked)
    mine = asked[mesh.dp_rank :: mesh.dp]
    with _loaded(model, config, mesh, reward=False) as (loaded, tokenizer):
        requests, answers = [], []
        for row in mine:
            try:
                ids = tokenizer.encode(instruct_prompt(row.messages))
                check_fits(ids, loaded.max_sequence_length)
            except RowError:
                continue
            requests.append(Request(row.id, 0, ids))
            answers.append(row.extra["answer"])
        greedy = Sampling(max_tokens=config.evaluate.max_tokens, temperature=0.0)
        with console.progress("answering held-out prompts", len(requests)) as progress:
            done = generate(loaded, tokenizer, mesh, requests, greedy, config.generate.slots, progress.advance)
        pairs = [(tokenizer.decode(d.token_ids), answer) for d, answer in zip(done, answers)]
    everywhere = _over_replicas(mesh, pairs)
    return {**exact_match(everywhere), "faulty": faulty + len(asked) - len(everywhere)}


def reward(model: Path | str, rows: str, config: RunConfig, mesh: Mesh, console: Console) -> dict[str, Any]:
    """Agreement with the labels of HelpSteer2 rows: {attribute: {"pearson", "spearman", "mae", "n"}}."""
    labelled, _ = read_rows(rows, Labelled)
    mine = labelled[mesh.dp_rank :: mesh.dp]
    with _loaded(model, config, mesh, reward=True) as (loaded, tokenizer):
        conversations, labels = [], []
        for row in mine:
            turns = [*row.messages, {"role": "assistant", "content": row.response}]
            try:
                conversations.append(encode(tokenizer, turns, loaded.max_sequence_length))
            except RowError:
                continue
            labels.append(row.labels)
        with console.progress("scoring held-out rows", len(conversations)) as progress:
            rewards = score(loaded, tokenizer, mesh, conversations, config.score.slots, progress.advance)
        pairs = [(named(rewards_A), true) for rewards_A, true in zip(rewards, labels)]
    everywhere = _over_replicas(mesh, pairs)
    return agreement([predicted for predicted, _ in everywhere], [true for _, true in everywhere])


@contextmanager
def _loaded(model: Path | str, config: RunConfig, mesh: Mesh, *, reward: bool) -> Iterator[tuple[Any, Any]]:
    loaded, tokenizer = load_model(model, mesh, dtype=config.models.dtype, reward=reward, spec=config.models.spec)
    try:
        yield loaded, tokenizer
    finally:
        del loaded
        gc.collect()  # two models must not be in memory at once


def _over_replicas(mesh: Mesh, values: Sequence[Any]) -> list[Any]:
    """The values of all replicas, in the order of the replicas, on every rank."""
    shares = [mesh.broadcast_object(list(values), src=mesh.tp * replica) for replica in range(mesh.dp)]
    return [value for share in shares for value in share]
