"""From a request's body to an order, and from what the ranks make to the answer's JSON: one class per role."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from nemo_sdg.engine.requests import Generation, Request
from nemo_sdg.engine.score import encode
from nemo_sdg.models.templates import instruct_prompt
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.serve import protocol
from nemo_sdg.serve.desk import Order
from nemo_sdg.serve.refusals import ApiError, not_finite
from nemo_sdg.serve.replies import Reply
from nemo_sdg.serve.text import TextStream, answer_text


class Asked(Protocol):
    """One request that is good enough to be worked on."""

    order: Order
    stream: bool

    async def answer(self) -> dict[str, Any]:
        """The whole answer, when it is there. Raises ApiError if the order ends without one."""

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """The answer in chunks as they come, with `stream`."""


@dataclasses.dataclass(frozen=True)
class Talking:
    """A policy that answers conversations."""

    name: str
    digest: str
    tokenizer: Tokenizer
    context: int
    check: Callable[[Request], None]
    """Raises RowError for a request that could never be worked on."""
    role = "policy"

    def prepare(self, body: dict[str, Any]) -> _Talk:
        """Raises ApiError, or RowError, for what cannot be answered."""
        chat = protocol.parse_chat(body, self.context)
        ids = self.tokenizer.encode(instruct_prompt(chat.messages))
        samples = range(chat.first_sample, chat.first_sample + chat.n)
        prompt = {"prompt_id": chat.prompt_id, "prompt_ids": ids, "samples": chat.samples}
        rows = [{**prompt, "sample": sample} for sample in samples]
        self.check(Request(**rows[0], sampling=chat.sampling))
        order = Order({"requests": rows, "sampling": dataclasses.asdict(chat.sampling)}, chat.n)
        return _Talk(self, chat, order, Reply(self.name, len(ids)), chat.stream)


@dataclasses.dataclass(frozen=True)
class _Talk:
    model: Talking
    chat: protocol.Chat
    order: Order
    reply: Reply
    stream: bool

    async def answer(self) -> dict[str, Any]:
        made: dict[int, Generation] = {}
        while len(made) < self.chat.n:
            index, _, generation = await self._next()
            if generation is not None:
                made[index] = generation
        answers = [(made[index], answer_text(made[index].text)) for index in range(self.chat.n)]
        return self.reply.completion(answers, self.model.tokenizer.piece_bytes)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        texts = [TextStream(self.model.tokenizer.decode, self.chat.sampling.stop) for _ in range(self.chat.n)]
        for index in range(self.chat.n):
            yield self.reply.chunk(index, {"role": "assistant", "content": ""})
        unfinished, spoken = self.chat.n, 0
        while unfinished:
            index, tokens, made = await self._next()
            text = texts[index].feed(tokens) if made is None else texts[index].finish(answer_text(made.text))
            if text:
                yield self.reply.chunk(index, {"content": text})
            if made is not None:
                unfinished, spoken = unfinished - 1, spoken + len(made.token_ids)
                yield self.reply.chunk(index, {}, made, self.model.tokenizer.piece_bytes)
        if self.chat.include_usage:
            yield self.reply.usage_chunk(spoken)

    async def _next(self) -> tuple[int, tuple[int, ...], Generation | None]:
        came = await self.order.answers.get()
        if isinstance(came, ApiError):
            raise came
        if came[2] is not None and came[2].finish_reason == "not_finite":
            raise not_finite()
        return came


@dataclasses.dataclass(frozen=True)
class Judging:
    """A reward model that scores conversations."""

    name: str
    digest: str
    tokenizer: Tokenizer
    context: int
    role = "reward"

    def prepare(self, body: dict[str, Any]) -> _Judgement:
        """Raises ApiError, or RowError, for what cannot be scored."""
        ids = encode(self.tokenizer, protocol.parse_judgement(body), self.context)
        return _Judgement(Order({"conversation": ids}, 1), Reply(self.name, len(ids)))


@dataclasses.dataclass(frozen=True)
class _Judgement:
    order: Order
    reply: Reply
    stream = False

    async def answer(self) -> dict[str, Any]:
        came = await self.order.answers.get()
        if isinstance(came, ApiError):
            raise came
        return self.reply.judgement(came)

    def events(self) -> AsyncIterator[dict[str, Any]]:
        raise AssertionError("a reward model answers at once; `prepare` refuses a stream")
