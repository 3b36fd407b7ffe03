"""When a response is over and what is kept of it, with the tiny world's real tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_sdg import resources
from nemo_sdg.engine.ending import Ending
from nemo_sdg.engine.jobs import Row
from nemo_sdg.engine.requests import Request, Sampling
from nemo_sdg.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(resources.root() / "examples/tiny/tokenizer.model")


def written(tokenizer, tokens, context=100, prompt=(1, 2, 3), **settings):
    """What becomes of a row that is given these tokens one by one, and how many it took."""
    sampling = Sampling(**{"max_tokens": 50, "logprobs": True, **settings})
    row = Row(0, Request("p", 0, list(prompt)), sampling, context, np.zeros(50))
    ending = Ending(tokenizer, context)
    for count, token in enumerate(tokens, start=1):
        made = ending.take(row, token, -float(count))
        if made is not None:
            return made, count
    return None, len(tokens)


def test_the_models_own_end_of_turn(tokenizer):
    text = tokenizer.encode("sort: b a")
    made, count = written(tokenizer, [*text, tokenizer.turn_id, *text])
    assert (made.text, made.finish_reason, count) == ("sort: b a", "stop", len(text) + 1)
    assert made.token_ids == tuple(text) and made.logprobs == tuple(-float(i + 1) for i in range(len(text)))
    assert written(tokenizer, [tokenizer.eos_id])[0].finish_reason == "stop"


def test_most_tokens_and_the_context(tokenizer):
    text = tokenizer.encode("a b c d e f g h")
    made, _ = written(tokenizer, text, max_tokens=3)
    assert (made.finish_reason, len(made.token_ids)) == ("length", 3)
    made, _ = written(tokenizer, text, context=5)
    assert (made.finish_reason, len(made.token_ids)) == ("context", 2)


def test_a_stop_token_of_the_callers(tokenizer):
    text = tokenizer.encode("a b c")
    made, _ = written(tokenizer, text, stop_ids=(text[-1],))
    assert made.finish_reason == "stop" and made.token_ids == tuple(text[:-1])


@pytest.mark.parametrize(
    "said, stop, kept",
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("abcabc", ("cab",), "ab"),
        ("x\n\ny", ("\n\n",), "x"),
        ("a\u00fcb\u20acc", ("\u20ac",), "a\u00fcb"),
        ("\U0001f600!", ("!",), "\U0001f600"),
        ("stop", ("stop",), ""),
    ],
)
def test_a_stop_text_ends_the_response_before_it(tokenizer, said, stop, kept):
    tokens = tokenizer.encode(said)
    made, count = written(tokenizer, tokens, stop=stop)
    assert (made.text, made.finish_reason) == (kept, "stop")
    whole = tokenizer.decode(tokens[:count])
    assert any(text in whole for text in stop) and not any(text in tokenizer.decode(tokens[: count - 1]) for text in stop)
    assert kept.startswith(tokenizer.decode(made.token_ids)), "the kept tokens say nothing of the stop text"
    assert len(made.logprobs) == len(made.token_ids)
    longer = tokens[: len(made.token_ids) + 1]
    assert len(tokenizer.decode(longer)) > len(kept) or longer == list(made.token_ids)


def test_a_text_that_is_not_there_stops_nothing(tokenizer):
    assert written(tokenizer, tokenizer.encode("one two three"), stop=("four",))[0] is None


def test_nothing_stops_before_the_least_length(tokenizer):
    tokens = tokenizer.encode("b a b a b a b a")
    made, count = written(tokenizer, tokens, stop=("b",), min_tokens=5)
    assert count >= 5 and "b" in made.text, "the first b came too early and stays"
    row = Row(0, Request("p", 0, [1]), Sampling(max_tokens=9, min_tokens=2, stop_ids=(77,)), 100, np.zeros(9))
    ending = Ending(tokenizer, 100)
    assert set(ending.barred(row)) == {77, *tokenizer.stop_ids}
    row.tokens += [5, 6]
    assert ending.barred(row) == ()


def test_logits_that_are_not_finite(tokenizer):
    made, _ = written(tokenizer, [*tokenizer.encode("ab"), -1])
    assert made.finish_reason == "not_finite"


def test_log_probabilities_only_if_asked_for(tokenizer):
    assert written(tokenizer, [tokenizer.eos_id], logprobs=False)[0].logprobs is None
