"""What is asked of a model and what comes back; readable without torch, so that endpoints need none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when a response ends."""

    max_tokens: int
    min_tokens: int = 0
    """Until there are so many, no token and no text can end the response."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Keeps the smallest set of most probable tokens whose mass reaches it (Holtzman et al., arXiv 1904.09751)."""
    top_k: int = 0
    """Keeps this many most probable tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keeps tokens of at least this share of the highest probability (Nguyen et al., arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens seen in prompt or response (Keskar et al., arXiv 1909.05858)."""
    stop: tuple[str, ...] = ()
    """Texts that end the response; what is kept ends before the first of them."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the response, besides the tokenizer's own end of turn."""
    logprobs: bool = False
    """Also give each token's log-probability under the model itself: before temperature, penalty and filters."""
    seed: int = 0
    round: int = 0
    """Rounds of a run have streams of their own."""


@dataclass(frozen=True)
class Request:
    """One response to be generated. The pair (prompt_id, sample) owns a random stream."""

    prompt_id: str
    sample: int
    prompt_ids: Sequence[int]
    sampling: Sampling | None = None
    """None is what the call says for all."""
    samples: int = 1
    """Responses that are generated to this prompt: they share the keys and values of its whole blocks."""


@dataclass(frozen=True)
class Generation:
    """One generated response, without the token or the text that ended it."""

    token_ids: tuple[int, ...]
    finish_reason: str
    """stop: the model ended its turn, or a stop text or token came; length: max_tokens; context: the model's
    context is full; not_finite: the logits were not finite, and the text must not be used."""
    text: str = ""
    logprobs: tuple[float, ...] | None = None
    """Natural log-probability of each token, if asked for."""
