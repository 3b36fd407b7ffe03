"""Instruct and Reward on these ranks: our engine behind the interface that all backends share.

Every rank of a replica makes the same calls and gets the same rows, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from nemo_sdg.config import Generate, Score
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.rows import answer, rate
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Prompt, Response, Scored


class LocalGenerator:
    """Answers prompts with a model of this replica; holds the keys and values until it is closed."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: Tokenizer, mesh: Mesh, settings: Generate, identity: dict[str, str]
    ) -> None:
        self.identity = identity
        self.engine: Engine | None = Engine(
            model,
            tokenizer,
            mesh,
            slots=settings.slots,
            prefill_tokens=settings.prefill_tokens,
            kv_cache_bytes=settings.kv_cache_bytes,
            fixed_shape=settings.fixed_shape,
        )

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, samples: int, first: int = 0
    ) -> Iterator[Response | Refusal]:
        """As `Generator.generate`: each row is bit-equal whatever else is under way."""
        assert self.engine is not None, "it was closed"
        return answer(self.engine, prompts, sampling, samples, first)

    def close(self) -> None:
        """The model stays with whoever holds it."""
        self.engine = None


class LocalScorer:
    """Scores responses with a reward model of this replica.

    The responses of one call are packed together, so what they are decides the last digits: call it with a row group.
    """

    def __init__(
        self, model: torch.nn.Module, tokenizer: Tokenizer, mesh: Mesh, settings: Score, identity: dict[str, str]
    ) -> None:
        self.identity, self._pack_tokens = identity, settings.pack_tokens
        self._model, self._tokenizer, self._mesh = model, tokenizer, mesh

    def score(self, responses: Iterable[Response]) -> Iterator[Scored | Refusal]:
        """As `Scorer.score`."""
        given = list(responses)
        rows, faulty = rate(
            self._model, self._tokenizer, self._mesh, given, provenance={}, pack_tokens=self._pack_tokens
        )
        yield from rows
        yield from (Refusal(name, error) for name, error in faulty.items())

    def close(self) -> None:
        self._model = None
