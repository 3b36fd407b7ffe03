"""Scores out of NIM's reward convention: as documented, in any order, and never guessed."""

from __future__ import annotations

import copy
import json

import pytest

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.engine.backends.nim_reward import read_scores
from nemo_sdg.errors import RowError

VALUES = dict(zip(ATTRIBUTES, (4.09375, 4.03125, 4.25, 0.57421875, -1.109375)))
# As NVIDIA's notebooks show it: `message` is a list, and the finish_reason is "length".
DOCUMENTED = {
    "id": "b0e1", "object": "chat.completion", "created": 1718735423, "model": "nvidia/nemotron-4-340b-reward",
    "choices": [{
        "index": 0,
        "message": [{"role": "assistant", "content": ",".join(f"{n}:{v}" for n, v in VALUES.items())}],
        "finish_reason": "length",
        "logprobs": {"content": [{"token": n, "logprob": v, "bytes": None, "top_logprobs": []}
                                 for n, v in VALUES.items()]},
    }],
}  # fmt: skip


def entries(answer: dict) -> list:
    return answer["choices"][0]["logprobs"]["content"]


def test_the_documented_answer():
    assert read_scores(DOCUMENTED) == VALUES


@pytest.mark.parametrize("message", [{"role": "assistant", "content": ""}, [], None, "absent"])
def test_the_message_is_not_read(message):
    answer = copy.deepcopy(DOCUMENTED)
    answer["choices"][0]["message"] = message
    if message == "absent":
        del answer["choices"][0]["message"]
    assert read_scores(answer) == VALUES


def test_names_count_and_not_places():
    answer = copy.deepcopy(DOCUMENTED)
    entries(answer).reverse()
    assert read_scores(answer) == VALUES and list(read_scores(answer)) == list(ATTRIBUTES)
    entries(answer)[0]["logprob"] = 3  # a whole number is one too
    assert read_scores(answer)["verbosity"] == 3.0


def no_choices(answer):
    del answer["choices"]


def empty_choices(answer):
    answer["choices"] = []


def no_logprobs(answer):
    answer["choices"][0]["logprobs"] = None


def absent_logprobs(answer):
    del answer["choices"][0]["logprobs"]


def content_is_text(answer):
    answer["choices"][0]["logprobs"]["content"] = "helpfulness:4"


def missing(answer):
    del entries(answer)[3]


def none_at_all(answer):
    entries(answer).clear()


def extra(answer):
    entries(answer).append({"token": "toxicity", "logprob": 0.1})


def instead(answer):
    entries(answer)[4]["token"] = "Verbosity"


def twice(answer):
    entries(answer).append(dict(entries(answer)[0]))


def nan(answer):
    entries(answer)[1]["logprob"] = float("nan")


def infinite(answer):
    entries(answer)[1]["logprob"] = float("-inf")


def beyond_floats(answer):
    entries(answer)[1]["logprob"] = 10**400


def text(answer):
    entries(answer)[1]["logprob"] = "4.0"


def truth(answer):
    entries(answer)[1]["logprob"] = True


def no_number(answer):
    del entries(answer)[1]["logprob"]


def no_name(answer):
    del entries(answer)[2]["token"]


def entry_is_a_list(answer):
    entries(answer)[2] = ["coherence", 4.0]


BROKEN = {
    no_choices: ("no choices", "an object with id, object, created, model"),
    empty_choices: ("no choices[0]", "a list of 0"),
    no_logprobs: ("no choices[0].logprobs.content", "choices[0].logprobs is null"),
    absent_logprobs: ("no choices[0].logprobs", "an object with index, message, finish_reason"),
    content_is_text: ("no choices[0].logprobs.content of the right kind", "'helpfulness:4'"),
    missing: ("no score for complexity", "helpfulness, correctness, coherence, verbosity"),
    none_at_all: ("no score for helpfulness", "no entries"),
    extra: ("an unknown attribute", "toxicity"),
    instead: ("no score for verbosity", "complexity, Verbosity"),
    twice: ("scored an attribute twice", "helpfulness"),
    nan: ("not finite", "correctness = nan"),
    infinite: ("not finite", "correctness = -inf"),
    beyond_floats: ("not finite", "correctness = inf"),
    text: ("no choices[0].logprobs.content[1].logprob of the right kind", "'4.0'"),
    truth: ("no choices[0].logprobs.content[1].logprob of the right kind", "True"),
    no_number: ("no choices[0].logprobs.content[1].logprob", "an object with token, bytes, top_logprobs"),
    no_name: ("no choices[0].logprobs.content[2].token", "an object with logprob"),
    entry_is_a_list: ("no choices[0].logprobs.content[2].token", "a list of 2"),
}


@pytest.mark.parametrize("breakage", BROKEN, ids=lambda function: function.__name__)
def test_another_shape_names_the_field_and_what_was_seen(breakage):
    answer = copy.deepcopy(DOCUMENTED)
    breakage(answer)
    answer = json.loads(json.dumps(answer))  # as it comes over the wire
    what, found = BROKEN[breakage]
    with pytest.raises(RowError) as refusal:
        read_scores(answer)
    assert what in refusal.value.what and found in refusal.value.found


@pytest.mark.parametrize("answer", [None, [], "text", 5, {}])
def test_what_is_no_answer_at_all(answer):
    with pytest.raises(RowError, match="no choices"):
        read_scores(answer)
