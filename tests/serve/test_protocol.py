"""What requests may say, field by field, and the sentence that the others get."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.engine.requests import Sampling
from nemo_sdg.records import Prompt
from nemo_sdg.serve.protocol import parse_chat, parse_json, parse_judgement
from nemo_sdg.serve.refusals import ApiError

USER = [{"role": "user", "content": "3 + 4 ="}]
PARTS = [{"type": "text", "text": "3 + "}, {"type": "text", "text": "4 ="}]
CONTEXT = 256


def chat(**fields):
    return parse_chat({"model": "m", "messages": USER, **fields}, CONTEXT)


def test_what_is_not_said_is_the_default():
    asked = chat(seed=7)
    assert asked.sampling == Sampling(max_tokens=CONTEXT, seed=7)
    assert (asked.n, asked.samples, asked.first_sample, asked.stream, asked.include_usage) == (1, 1, 0, False, False)
    assert asked.prompt_id == Prompt.from_row({"messages": USER}).id, "the stream of a run's row without an id"


def test_every_field_arrives():
    asked = chat(
        max_tokens=9, min_tokens=2, temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, n=3,
        seed=-4, stop=["a", "b"], stop_token_ids=[5], logprobs=True, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert asked.sampling == Sampling(
        max_tokens=9, min_tokens=2, temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, seed=-4,
        stop=("a", "b"), stop_ids=(5,), logprobs=True,
    )  # fmt: skip
    assert (asked.n, asked.samples, asked.stream, asked.include_usage) == (3, 3, True, True)


def test_a_run_names_its_own_stream():
    own = {"prompt_id": "p", "sample": 5, "samples": 8, "seed": 3, "round": 2}
    asked = chat(seed=99, nemo_sdg=own)
    assert (asked.prompt_id, asked.first_sample, asked.samples) == ("p", 5, 8)
    assert (asked.sampling.seed, asked.sampling.round) == (3, 2)


def test_without_a_seed_each_request_has_another_stream():
    assert len({chat().sampling.seed for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "fields", [dict(top_k=-1), dict(max_completion_tokens=10**12), dict(logit_bias={}, tools=[], frequency_penalty=0.0),
               dict(response_format={"type": "text"}, user="me", stop="x"), dict(temperature=None, n=None, stop=None),
               dict(messages=[{"role": "user", "content": PARTS}])],
)  # fmt: skip
def test_what_clients_also_send_is_understood(fields):
    asked = chat(**fields)
    assert asked.messages == tuple(USER) and asked.sampling.max_tokens == CONTEXT and asked.sampling.top_k == 0


REFUSED = {
    "temperature": [-1, "1", True, 1e40], "top_p": [0, 1.5, [1]], "top_k": [-2, 1.5], "min_p": [-0.1, 2],
    "repetition_penalty": [0], "max_tokens": [0, -3, 1.0, "9"], "min_tokens": [-1, CONTEXT + 1], "n": [0, 129, True],
    "seed": [2**63, 1.5, "7"], "stop": [[""], "", 3, ["x"] * 17, ["\ud800"]], "stop_token_ids": [5, [-1], ["a"]],
    "logprobs": [1, "yes"], "stream": ["true", 0], "stream_options": [3, {"chunk": 1}], "top_logprobs": [5],
    "tools": [[{"type": "function"}]], "response_format": [{"type": "json_object"}], "logit_bias": [{"5": 1}],
    "frequency_penalty": [0.5], "nemo_sdg": [3, {"sample": -1}, {"prompt_id": ""}, {"other": 1}, {"seed": "1"}],
    "messages": [None, [], "hi", [3], USER * 2, [{"role": "user", "content": ""}], [{"role": "tool", "content": "x"}],
                 [{"role": "user", "content": "<extra_id_1>"}], [{"role": "user", "content": "\ud800"}],
                 [*USER, {"role": "assistant", "content": "7"}],
                 [{"role": "user", "content": [{"type": "image_url"}]}]],
    "no_such_field": [None, 1],
}  # fmt: skip


@pytest.mark.parametrize("name, value", [(name, value) for name, values in REFUSED.items() for value in values])
def test_what_cannot_be_meant_is_refused_by_name(name, value):
    with pytest.raises(ApiError) as refused:
        chat(**{name: value})
    error = refused.value.body()["error"]
    assert refused.value.status == 400 and error["type"] == "invalid_request_error"
    assert error["param"].split(".")[0] == name and error["message"]
    json.dumps(refused.value.body()).encode()


def test_two_limits_that_differ_are_refused():
    with pytest.raises(ApiError, match="max_completion_tokens"):
        chat(max_tokens=3, max_completion_tokens=4)
    assert chat(max_tokens=3, max_completion_tokens=3).sampling.max_tokens == 3


DEEP = b"[" * 100_000, b"{" + b'"a":{' * 50_000


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b'{"a": NaN}', b"\xff", *DEEP])
def test_a_body_that_is_no_object_is_refused(data):
    with pytest.raises(ApiError) as refused:
        parse_json(data)
    assert refused.value.status == 400


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*REFUSED, "model"]), ANYTHING))
def test_any_object_is_understood_or_refused(body):
    for parse in (lambda: parse_chat({"messages": USER, **body}, CONTEXT), lambda: parse_judgement(body)):
        try:
            parse()
        except ApiError as refused:
            assert refused.status == 400


def test_a_judgement_is_of_the_assistants_last_turn():
    turns = [*USER, {"role": "assistant", "content": "7"}]
    assert parse_judgement({"model": "m", "messages": turns, "temperature": 0.5}) == tuple(turns)
    for wrong in (dict(messages=USER), dict(messages=turns, stream=True), dict(messages=turns, n=2)):
        with pytest.raises(ApiError):
            parse_judgement({"model": "m", **wrong})
