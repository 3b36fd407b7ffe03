"""Rows through a model: prompts become responses, responses become scored rows, and what cannot is told why.

The backends, and through them the stages, the verbs and the evaluations, all use these functions.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.generate import Engine, Generation, Request
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.score import encode, named, score
from nemo_sdg.errors import RowError
from nemo_sdg.models.templates import instruct_prompt
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Prompt, Response, Scored
from nemo_sdg.records.fields import all_attributes

Faulty = dict[str, RowError]
"""Why, by the id of a row that was set aside."""
OnFinished = Callable[[int], None]


def answer(
    engine: Engine, prompts: Iterable[Prompt], sampling: Sampling, samples: int, first: int = 0
) -> Iterator[Response | Refusal]:
    """`samples` responses per prompt, numbered from `first` on, as they finish: in any order, the same on every rank of
    the replica.

    Prompts are taken as slots come free, so that a long file is never held. Set aside: prompts that the template
    or the context cannot hold, and responses whose logits were not finite.
    """
    source, more = iter(prompts), True
    asked: dict[int, tuple[Prompt, int]] = {}
    numbers = range(first, first + samples)
    while more or not engine.idle:
        while more and engine.room:
            prompt = next(source, None)
            if prompt is None:
                more = False
                break
            try:
                ids = tokenized(engine.tokenizer, prompt)
                requests = [Request(prompt.id, sample, ids, sampling, samples) for sample in numbers]
                for request in requests:
                    engine.check(request)
            except RowError as error:
                yield from (Refusal(f"{prompt.id}#{sample}", error) for sample in numbers)
                continue
            for request in requests:
                asked[engine.submit(request)] = prompt, request.sample
        for event in engine.step():
            if event.generation is not None:
                yield _answered(*asked.pop(event.ticket), event.generation)


def tokenized(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """What Instruct continues. Raises RowError where the template cannot express the prompt."""
    return tokenizer.encode(instruct_prompt(prompt.messages))


def _answered(prompt: Prompt, sample: int, made: Generation) -> Response | Refusal:
    name = f"{prompt.id}#{sample}"
    if made.finish_reason == "not_finite":
        return Refusal(name, RowError("the model's logits are not finite"))
    extra = dict(prompt.extra)
    if made.logprobs is not None:
        extra["response_logprobs"] = list(made.logprobs)
    return Response(
        id=name,
        prompt_id=prompt.id,
        sample=sample,
        messages=prompt.messages,
        # The template closes each turn with a newline of its own.
        response=made.text.removesuffix("\n"),
        response_token_ids=made.token_ids,
        finish_reason=made.finish_reason,
        extra=extra,
    )


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
    """`answer` for a list of prompts: responses in the order of the prompts, and what was set aside by response id."""
    engine = Engine(model, tokenizer, mesh, slots=slots)
    told = _told(mesh, on_finished)
    made: dict[str, Response] = {}
    faulty: Faulty = {}
    for row in answer(engine, prompts, sampling, samples):
        if isinstance(row, Refusal):
            faulty[row.id] = row.error
        else:
            made[row.id] = row
            row.provenance.update(provenance)
        told(1)
    names = [f"{prompt.id}#{sample}" for prompt in prompts for sample in range(samples)]
    return [made[name] for name in names if name in made], {name: faulty[name] for name in names if name in faulty}


def rate(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    responses: Sequence[Response],
    *,
    provenance: Mapping[str, Any],
    pack_tokens: int = 4096,
    on_finished: OnFinished | None = None,
) -> tuple[list[Scored], Faulty]:
    """The responses with the scores that the model gives, in order, on every rank of the replica.

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
    told = _told(mesh, on_finished)
    if faulty:  # a row that never reaches the model is finished too
        told(len(faulty))
    scored = []
    for row, rewards_A in zip(owners, score(model, tokenizer, mesh, conversations, pack_tokens, told)):
        if not np.isfinite(rewards_A).all():
            faulty[row.id] = RowError("the scores are not finite")
            continue
        known = {**vars(row), "provenance": {**row.provenance, **provenance}}
        scored.append(Scored(**known, scores=all_attributes(named(rewards_A, model.outputs))))
    return scored, faulty


def _told(mesh: Mesh, on_finished: OnFinished | None) -> OnFinished:
    """Replicas that wait for this one learn that it works."""

    def told(rows: int) -> None:
        mesh.alive()
        if on_finished:
            on_finished(rows)

    return told
