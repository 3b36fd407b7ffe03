"""Streamed text against the engine's own rules of ending: whole characters, and never a part of a stop text."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece
from folders import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.engine.ending import Ending
from nemo_sdg.engine.jobs import Row
from nemo_sdg.engine.requests import Generation, Request, Sampling
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.serve.text import TextStream, answer_text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"))


def streamed(tokenizer: Tokenizer, ids: list[int], sampling: Sampling) -> tuple[list[str], Generation]:
    """The pieces that a client gets for a response of these tokens, and the response."""
    ending = Ending(tokenizer, 10**6)
    row = Row(0, Request("p", 0, [1], sampling), sampling, 10**6, np.zeros(0))
    stream, pieces, told = TextStream(tokenizer.decode, sampling.stop), [], 0
    for token in [*ids, tokenizer.turn_id]:
        made = ending.take(row, token, -1.0)
        if made is not None:
            pieces.append(stream.finish(answer_text(made.text)))
            return pieces, made
        pieces.append(stream.feed(row.tokens[told:]))
        told = len(row.tokens)
    raise AssertionError("the end of turn ends every response")


TEXT = st.text(alphabet="abcklst \n.é☃🙂", max_size=30)
STOPS = st.lists(st.text(alphabet="abst \n☃", min_size=1, max_size=4), max_size=3)


@settings(max_examples=300)
@given(text=TEXT, stop=STOPS, least=st.integers(0, 12), noise=st.lists(st.integers(6, 260), max_size=6))
def test_what_is_streamed_is_the_answer(tokenizer, text, stop, least, noise):
    """Also where bytes are no characters, and where a stop text comes before the response may end."""
    ids = [*tokenizer.encode(text), *noise]
    sampling = Sampling(max_tokens=100, min_tokens=least, stop=tuple(stop))
    pieces, made = streamed(tokenizer, ids, sampling)
    assert "".join(pieces) == answer_text(made.text)
    if not least:
        assert not any(text in "".join(pieces) for text in stop)


def test_text_comes_as_soon_as_it_is_certain(tokenizer):
    pieces, _ = streamed(tokenizer, tokenizer.encode("a☃b\nk\n"), Sampling(max_tokens=100))
    assert [piece for piece in pieces if piece] == ["a", "☃", "b", "\nk"], "the last newline closes the turn"


def test_a_stop_text_is_held_back_until_it_can_no_longer_come(tokenizer):
    ids = [tokenizer.encode(letter)[0] for letter in "ksttaksta"]
    pieces, made = streamed(tokenizer, ids, Sampling(max_tokens=100, stop=("sta",)))
    assert [piece for piece in pieces if piece] == ["k", "stt", "a", "k"]
    assert (made.text, made.finish_reason) == ("ksttak", "stop")


def test_a_newline_before_a_stop_text_closes_the_turn(tokenizer):
    ids = [tokenizer.encode(letter)[0] for letter in "k\nsta"]
    pieces, _ = streamed(tokenizer, ids, Sampling(max_tokens=100, stop=("sta",)))
    assert "".join(pieces) == "k"


def test_spaces_survive_a_tokenizer_that_strips_the_first_one(tmp_path):
    """What a piece decodes to depends on whether it is the first."""
    (tmp_path / "text").write_text("a b c d\nd c b a\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "dummy"), vocab_size=300, model_type="bpe",
        byte_fallback=True, user_defined_symbols=[f"<extra_id_{n}>" for n in range(3)], hard_vocab_limit=False,
        add_dummy_prefix=True, minloglevel=2,
    )  # fmt: skip
    stripping = Tokenizer(tmp_path / "dummy.model")
    ids = stripping.encode("a b c d")
    assert len(ids) > 3 and stripping.decode(ids[1:2]) != stripping.decode(ids[:2])[1:]
    pieces, _ = streamed(stripping, ids, Sampling(max_tokens=100))
    assert "".join(pieces) == "a b c d" and len([piece for piece in pieces if piece]) > 2
