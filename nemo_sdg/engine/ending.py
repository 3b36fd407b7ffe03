"""When a response is over, and what is kept of it. No torch."""

from __future__ import annotations

from nemo_sdg.engine.jobs import Row
from nemo_sdg.engine.requests import Generation
from nemo_sdg.models.tokenizer import Tokenizer


class Ending:
    """The rules of one model: its own end of turn and its context."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self.stop_ids = frozenset(tokenizer.stop_ids)

    def barred(self, row: Row) -> tuple[int, ...]:
        """Tokens that may not come yet: those that would end a response before its least length."""
        if len(row.tokens) >= row.sampling.min_tokens:
            return ()
        return (*self.stop_ids, *row.sampling.stop_ids)

    def take(self, row: Row, token: int, logprob: float) -> Generation | None:
        """Adds a token to a row (-1: its logits were not finite); the finished response if that ends it."""
        settings = row.sampling
        if token < 0:
            return self._made(row, len(row.tokens), "not_finite")
        if token in self.stop_ids or token in settings.stop_ids:
            return self._made(row, len(row.tokens), "stop")
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if settings.stop and len(row.tokens) >= settings.min_tokens:
            place = self._stop_text(row)
            if place is not None:
                return self._cut(row, place)
        if len(row.tokens) == settings.max_tokens:
            return self._made(row, len(row.tokens), "length")
        if len(row.request.prompt_ids) + len(row.tokens) >= self._context:
            return self._made(row, len(row.tokens), "context")
        return None

    def _made(self, row: Row, tokens: int, reason: str, text: str | None = None) -> Generation:
        kept = tuple(row.tokens[:tokens])
        logprobs = tuple(row.logprobs[:tokens]) if row.sampling.logprobs else None
        return Generation(kept, reason, self._tokenizer.decode(kept) if text is None else text, logprobs)

    def _stop_text(self, row: Row) -> int | None:
        """How many characters before the end of the text a stop text begins that the last token has completed."""
        # A character takes four tokens at most, and a few more cannot change what the last ones say.
        window = row.tokens[-4 * max(map(len, row.sampling.stop)) - 4 :]
        # The bytes of a character that is not complete yet show as replacement characters, one each.
        before, now = len(self._tokenizer.decode(window[:-1]).rstrip("\ufffd")), self._tokenizer.decode(window)
        places = [now.find(text, max(0, before - len(text) + 1)) for text in row.sampling.stop]
        found = [place for place in places if place >= 0]
        return len(now) - min(found) if found else None

    def _cut(self, row: Row, from_end: int) -> Generation:
        """The text before the stop text, and the tokens that lie wholly in it."""
        text = self._tokenizer.decode(row.tokens)
        text = text[: len(text) - from_end]
        tokens = len(row.tokens) - 1
        while tokens and len(self._tokenizer.decode(row.tokens[:tokens])) > len(text):
            tokens -= 1
        return self._made(row, tokens, "stop", text)
