"""Instruct and Reward behind a server: NVIDIA NIM, trtllm-serve, vLLM, or `nemo-sdg serve`.

A row that the templates cannot express is refused as the local models refuse it, before anything is sent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from nemo_sdg.config import Endpoint
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.nim_reward import read_scores
from nemo_sdg.engine.backends.server import OURS, Job, Server
from nemo_sdg.engine.backends.shape import take
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.errors import RowError
from nemo_sdg.models.templates import check_messages
from nemo_sdg.records import FINISH_REASONS, Prompt, Response, Scored
from nemo_sdg.records.fields import encodable

_EXTENSIONS = ("min_tokens", "min_p", "top_k", "repetition_penalty")
"""Settings that vLLM, NIM and ours know and the OpenAI API does not; sent only where they are not the default."""
_PLAIN = Sampling(max_tokens=1)


class _Endpoint:
    """What both roles share: a server, its name in the fingerprint, and its end."""

    def __init__(self, endpoint: Endpoint, where: str, role: str) -> None:
        self.server, self._role = Server(endpoint, where, role), role

    @property
    def identity(self) -> dict[str, str]:
        """The model by its name alone: the same model may move to another address."""
        return {self._role: f"endpoint:{self.server.model}"}

    def close(self) -> None:
        self.server.close()


class EndpointGenerator(_Endpoint):
    """Answers prompts through chat completions, one request per sample."""

    def __init__(self, endpoint: Endpoint, where: str = "generate.endpoint", role: str = "policy") -> None:
        super().__init__(endpoint, where, role)

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, samples: int, first: int = 0
    ) -> Iterator[Response | Refusal]:
        """As `Generator.generate`. Raises UserError when the server is gone or refuses everybody."""
        settings = _settings(sampling)
        ours, numbers = self.server.ours, range(first, first + samples)

        def jobs() -> Iterator[Job | Refusal]:
            for prompt in prompts:
                try:
                    check_messages(prompt.messages, last="user")
                except RowError as error:
                    yield from (Refusal(f"{prompt.id}#{sample}", error) for sample in numbers)
                    continue
                for sample in numbers:
                    body = {**settings, "messages": list(prompt.messages), "seed": seed_of(sampling, prompt.id, sample)}
                    if ours:
                        own = {"prompt_id": prompt.id, "sample": sample, "samples": samples}
                        own |= {"seed": sampling.seed, "round": sampling.round}
                        body["extra_body"] = {**settings["extra_body"], OURS: own}
                    read = partial(_response, prompt=prompt, sample=sample, ours=ours, logprobs=sampling.logprobs)
                    yield Job(f"{prompt.id}#{sample}", prompt.id, body, read)

        yield from self.server.stream(jobs())


class EndpointScorer(_Endpoint):
    """Scores responses through NIM's reward convention."""

    def __init__(self, endpoint: Endpoint, where: str = "score.endpoint", own: Sequence[str] = ()) -> None:
        """
        Args:
            own: scores that the server may give beside the five attributes.
        """
        super().__init__(endpoint, where, "reward")
        self._own = own

    def score(self, responses: Iterable[Response]) -> Iterator[Scored | Refusal]:
        """As `Scorer.score`. Raises UserError when the server is gone or refuses everybody."""

        def jobs() -> Iterator[Job | Refusal]:
            for row in responses:
                try:
                    # A system text is not part of the reward format, so the local model does not read it either.
                    _, turns = check_messages(
                        [*row.messages, {"role": "assistant", "content": row.response}], last="assistant"
                    )
                except RowError as error:
                    yield Refusal(row.id, error)
                else:
                    yield Job(row.id, row.prompt_id, {"messages": turns}, partial(_scored, row=row, own=self._own))

        yield from self.server.stream(jobs())


def seed_of(sampling: Sampling, prompt_id: str, sample: int) -> int:
    """The seed that a server gets for one response, 31 bits: the same in every run with the same seed."""
    name = f"{sampling.seed}\0{sampling.round}\0{prompt_id}\0{sample}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "little") >> 1


def _settings(sampling: Sampling) -> dict[str, Any]:
    """What all requests of a call have in common."""
    extra = {name: getattr(sampling, name) for name in _EXTENSIONS}
    extra = {name: value for name, value in extra.items() if value != getattr(_PLAIN, name)}
    if sampling.stop_ids:
        extra["stop_token_ids"] = list(sampling.stop_ids)
    body = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs:
        body["logprobs"] = True
    return {**body, "extra_body": extra}


def _response(answer: Any, *, prompt: Prompt, sample: int, ours: bool, logprobs: bool) -> Response:
    """The row that an answer is. Raises RowError."""
    finish = take(answer, "choices", 0, "finish_reason", kind=str)
    token_ids: list[int] = []
    if ours:
        own = take(answer, "choices", 0, OURS, kind=dict)
        token_ids = take(own, "token_ids", kind=list)
        finish = take(own, "finish_reason", kind=str)
        if not all(type(token) is int and token >= 0 for token in token_ids):
            raise RowError(f"the server's {OURS}.token_ids are not token ids", expected="whole numbers")
    if finish not in FINISH_REASONS:
        expected = "one of " + ", ".join(FINISH_REASONS)
        raise RowError("the server's finish_reason is unknown", found=repr(finish)[:80], expected=expected)
    text = take(answer, "choices", 0, "message", "content", kind=str)
    encodable(text, "the response", f"{prompt.id}#{sample}")
    return Response(
        id=f"{prompt.id}#{sample}",
        prompt_id=prompt.id,
        sample=sample,
        messages=prompt.messages,
        # Nemotron closes each turn with a newline, which is not part of the text; ours has taken it off.
        response=text if ours else text.removesuffix("\n"),
        response_token_ids=tuple(token_ids),
        finish_reason=finish,
        extra={**prompt.extra, "response_logprobs": _logprobs(answer)} if logprobs else prompt.extra,
    )


def _logprobs(answer: Any) -> list[float]:
    entries = take(answer, "choices", 0, "logprobs", "content", kind=list)
    path = ("choices", 0, "logprobs", "content")
    values = [take(answer, *path, index, "logprob", kind=float) for index in range(len(entries))]
    if not all(map(math.isfinite, values)):
        raise RowError("the server's log-probabilities are not finite")
    return values


def _scored(answer: Any, *, row: Response, own: Sequence[str]) -> Scored:
    return Scored(**vars(row), scores=read_scores(answer, own))
