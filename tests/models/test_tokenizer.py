from __future__ import annotations

import pytest
from folders import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.templates import sft_text
from nemo_sdg.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t.model"))


def test_ids_are_those_of_the_released_tokenizer(tokenizer):
    assert tokenizer.encode("<extra_id_0>")[-1] == 4 and tokenizer.turn_id == 5 and tokenizer.eos_id == 3
    assert tokenizer.stop_ids == (5, 3)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\u2581"), max_size=40))
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_offsets_say_where_each_token_begins(tokenizer):
    text, spans = sft_text(
        [{"role": "user", "content": "aks \u00e9\u4f60 b"}, {"role": "assistant", "content": "kl\u00e9m"}]
    )
    ids, starts = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    trained = [i for i, start in zip(ids, starts) if any(a <= start < b for a, b in spans)]
    assert tokenizer.decode(trained) == "kl\u00e9m\n<extra_id_1>"


def test_an_id_beyond_the_pieces_says_nothing(tokenizer):
    ids = tokenizer.encode("kl")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, *ids]) == "klkl"


def test_a_file_that_is_no_tokenizer(tmp_path):
    broken = tmp_path / "x.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="x.model: the tokenizer cannot be read"):
        Tokenizer(broken)
