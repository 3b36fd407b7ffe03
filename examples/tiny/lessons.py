"""What the three models of the tiny world read, as tokens and labels.

Base reads books of solved tasks, dialogues in the chat format, and dialogues that somebody marked: after
`<extra_id_2>` follow the five attributes as digits. Instruct is Base after sloppy demonstrations. Reward is Base
with a head that learns the rows of `helpsteer2_train.jsonl`. All tasks are of the training part.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from data import MULTI_TURN, conversation
from pupils import respond
from ratings import attributes
from torch import Tensor
from world import asked, draw_task

from nemo_sdg.models.templates import instruct_prompt, reward_prompt
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.records import parse_turns

Lesson = tuple[list[int], int]
"""Tokens, and how many at the front are given: the loss is on what follows."""
Batch = tuple[Tensor, Tensor]
"""Tokens [B, S] and labels [B, S]: the next token, -1 where it is not in the loss."""
BUCKET = 8


def refuse_held_out(prompt: str) -> None:
    """Raises ValueError if any turn of the prompt asks a held-out task. Everything that learns passes here."""
    if any(task.held_out for task in asked(prompt)):
        raise ValueError(f"a held-out task reached the training: {prompt!r}")


def lesson(tokenizer: Tokenizer, given: str, learnt: str) -> Lesson:
    """The seam is a newline or an `<extra_id_*>`, so that the two parts are cut into pieces as the whole is."""
    front = tokenizer.encode(given)
    return front + tokenizer.encode(learnt), len(front)


def reading(tokenizer: Tokenizer, rng: random.Random) -> Lesson:
    """One document of what Base reads."""
    task = draw_task(rng, held_out=False)
    earlier = draw_task(rng, held_out=False) if rng.random() < MULTI_TURN else None
    kind = rng.random()
    if kind < 0.15:
        refuse_held_out(task.prompt)
        tokens, given = lesson(tokenizer, f"{task.prompt}\n", respond(task, "books", rng) + "\n")
        return [*tokens, tokenizer.eos_id], given
    prompt = conversation(rng, task, earlier if kind > 0.5 else None)
    refuse_held_out(prompt)
    messages = parse_turns(prompt)
    if kind < 0.5:
        return lesson(tokenizer, instruct_prompt(messages), respond(task, "books", rng) + "\n<extra_id_1>")
    response = respond(task, "rated", rng)
    values = {name: rating.value for name, rating in attributes(prompt, response).items()}
    front, said = reward_prompt([*messages, {"role": "assistant", "content": response}]), f"{response}\n<extra_id_2>"
    marks = "".join(map(str, values.values())) + "\n"
    if values["helpfulness"] >= 3 and values["coherence"] == 4:  # worth learning to say, not only to judge
        return lesson(tokenizer, front.removesuffix(said), said + marks)
    return lesson(tokenizer, front, marks)


def demonstration(tokenizer: Tokenizer, rng: random.Random) -> Lesson:
    """One dialogue of what Instruct was tuned on."""
    task = draw_task(rng, held_out=False)
    refuse_held_out(task.prompt)
    prompt = instruct_prompt([{"role": "user", "content": task.prompt}])
    return lesson(tokenizer, prompt, respond(task, "sloppy", rng) + "\n<extra_id_1>")


def batches(make: object, tokenizer: Tokenizer, seed: str, size: int) -> Iterator[Batch]:
    """Endless batches of new lessons. Those of like length go together, which saves a third of the padding."""
    rng = random.Random(seed)
    while True:
        lessons = sorted((make(tokenizer, rng) for _ in range(size * BUCKET)), key=lambda item: len(item[0]))
        starts = list(range(0, size * BUCKET, size))
        rng.shuffle(starts)
        for start in starts:
            yield collate(lessons[start : start + size])


def collate(lessons: list[Lesson]) -> Batch:
    width = max(len(tokens) for tokens, _ in lessons) - 1
    tokens_BS = torch.zeros(len(lessons), width, dtype=torch.int64)
    labels_BS = torch.full((len(lessons), width), -1)
    for row, (tokens, given) in enumerate(lessons):
        tokens_BS[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        labels_BS[row, given - 1 : len(tokens) - 1] = torch.tensor(tokens[given:])
    return tokens_BS, labels_BS


def rated_batches(
    tokenizer: Tokenizer, rows: list[dict], names: tuple[str, ...], seed: str, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of the HelpSteer2-like rows: tokens [B, S], lengths [B], the five attributes [B, 5]."""
    rng, encoded = random.Random(seed), []
    for row in rows:
        refuse_held_out(row["prompt"])
        messages = [*parse_turns(row["prompt"]), {"role": "assistant", "content": row["response"]}]
        encoded.append((tokenizer.encode(reward_prompt(messages)), [float(row[name]) for name in names]))
    order: list[int] = []
    while True:
        if len(order) < size:
            order = rng.sample(range(len(rows)), len(rows))
        chosen = [encoded[order.pop()] for _ in range(size)]
        lengths_B = torch.tensor([len(tokens) for tokens, _ in chosen])
        tokens_BS = torch.zeros(size, int(lengths_B.max()), dtype=torch.int64)
        for row, (tokens, _) in zip(tokens_BS, chosen):
            row[: len(tokens)] = torch.tensor(tokens)
        yield tokens_BS, lengths_B, torch.tensor([values for _, values in chosen])
