"""Rows through a model: prompts become responses, responses become scored rows, and what cannot is told why.

The stages, the verbs `generate` and `score`, and the evaluations all use these two functions.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch

from nemo_sdg.engine.generate import Request, check_fits, generate
from nemo_sdg.engine.sampling import Sampling
from nemo_sdg.engine.score import encode, named, score
from nemo_sdg.errors import RowError
from nemo_sdg.models.templates import instruct_prompt
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Prompt, Response, Scored

Faulty = dict[str, RowError]
"""Why, by the id of a row that was set aside."""
OnFinished = Callable[[int], None]


def respond(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int,
    slots: int,
    provenance: Mapping[str, Any],
    on_finished: OnFinished | None = None,
) -> tuple[list[Response], Faulty]:
    """`samples` responses per prompt, in the order of the prompts, on every rank of the replica.

    Set aside, by response id: prompts that the template or the context cannot hold, and responses whose logits
    were not finite.
    """
    faulty: Faulty = {}
    owners, requests = [], []
    for prompt in prompts:
        try:
            ids = tokenizer.encode(instruct_prompt(prompt.messages))
            check_fits(ids, model.max_sequence_length)
        except RowError as error:
            faulty.update({f"{prompt.id}#{sample}": error for sample in range(samples)})
            continue
        owners += [prompt] * samples
        requests += [Request(prompt.id, sample, ids) for sample in range(samples)]
    _count(on_finished, faulty)
    responses = []
    generations = generate(model, tokenizer, mesh, requests, sampling, slots, _told(mesh, on_finished))
    for prompt, request, made in zip(owners, requests, generations):
        name = f"{prompt.id}#{request.sample}"
        if made.finish_reason == "not_finite":
            faulty[name] = RowError("the model's logits are not finite")
            continue
        responses.append(
            Response(
                id=name,
                prompt_id=prompt.id,
                sample=request.sample,
                messages=prompt.messages,
                # The template closes each turn with a newline of its own.
                response=tokenizer.decode(made.token_ids).removesuffix("\n"),
                response_token_ids=made.token_ids,
                finish_reason=made.finish_reason,
                provenance=dict(provenance),
                extra=prompt.extra,
            )
        )
    return responses, faulty


def rate(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    responses: Sequence[Response],
    *,
    slots: int,
    provenance: Mapping[str, Any],
    on_finished: OnFinished | None = None,
) -> tuple[list[Scored], Faulty]:
    """The responses with their five attributes, in order, on every rank of the replica.

    Set aside, by id: conversations that the template or the context cannot hold, and scores that are not finite.
    """
    faulty: Faulty = {}
    owners, conversations = [], []
    for row in responses:
        try:
            turns = [*row.messages, {"role": "assistant", "content": row.response}]
            conversations.append(encode(tokenizer, turns, model.max_sequence_length))
            owners.append(row)
        except RowError as error:
            faulty[row.id] = error
    _count(on_finished, faulty)
    scored = []
    for row, rewards_A in zip(owners, score(model, tokenizer, mesh, conversations, slots, _told(mesh, on_finished))):
        if not np.isfinite(rewards_A).all():
            faulty[row.id] = RowError("the scores are not finite")
            continue
        known = {**vars(row), "provenance": {**row.provenance, **provenance}}
        scored.append(Scored(**known, scores=named(rewards_A)))
    return scored, faulty


def _told(mesh: Mesh, on_finished: OnFinished | None) -> OnFinished:
    """Replicas that wait for this one learn that it works."""

    def told(rows: int) -> None:
        mesh.alive()
        if on_finished:
            on_finished(rows)

    return told


def _count(on_finished: OnFinished | None, faulty: Faulty) -> None:
    """A row that never reaches the model is finished too."""
    if on_finished and faulty:
        on_finished(len(faulty))
