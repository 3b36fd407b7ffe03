"""The prompt strings of the model cards, character by character."""

from __future__ import annotations

import pytest

from nemo_sdg.errors import RowError
from nemo_sdg.models import templates
from nemo_sdg.models.templates import instruct_prompt, reward_prompt, sft_text
from nemo_sdg.records import parse_turns

USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": "Hi there"}
FIXED = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def test_instruct_prompt_has_an_empty_system_text():
    assert instruct_prompt([USER]) == "<extra_id_0>System\n\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\n"


def test_instruct_prompt_with_system_and_turns():
    messages = [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, {"role": "user", "content": "Bye"}]
    assert instruct_prompt(messages) == (
        "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\nHi there\n"
        "<extra_id_1>User\nBye\n<extra_id_1>Assistant\n"
    )


def test_reward_prompt_has_the_fixed_system_text_and_ends_where_it_is_read():
    expected = f"<extra_id_0>System\n{FIXED}\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\nHi there\n<extra_id_2>"
    assert reward_prompt([USER, ASSISTANT]) == expected
    assert reward_prompt([{"role": "system", "content": "Be brief."}, USER, ASSISTANT]) == expected


def test_the_loss_covers_answers_their_newline_and_the_marker_that_ends_them():
    messages = [USER, ASSISTANT, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]
    text, spans = sft_text(messages)
    assert [text[a:b] for a, b in spans] == ["Hi there\n<extra_id_1>", "See you\n<extra_id_1>"]
    assert text == (
        "<extra_id_0>System\n\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\nHi there\n<extra_id_1>User\nBye\n"
        "<extra_id_1>Assistant\nSee you\n<extra_id_1>"
    )


def test_the_training_text_begins_with_the_prompt():
    text, spans = sft_text([USER, ASSISTANT])
    assert text.startswith(instruct_prompt([USER])) and spans[0][0] == len(instruct_prompt([USER]))


def test_the_nine_outputs_are_in_the_order_of_the_reward_model():
    assert templates.OUTPUT_NAMES.index("quality") == 0
    assert templates.ATTRIBUTE_SLOTS == {
        "helpfulness": 4, "correctness": 5, "coherence": 6, "complexity": 7, "verbosity": 8
    }  # fmt: skip


def test_helpsteer_prompts_hold_their_earlier_turns():
    prompt = "Name a color\n<extra_id_1>Assistant\nRed\n<extra_id_1>User\nAnother"
    assert [m["role"] for m in parse_turns(prompt)] == ["user", "assistant", "user"]
    assert [m["content"] for m in parse_turns(prompt)] == ["Name a color", "Red", "Another"]
    # Wrapped as one user turn the released template gives the same string.
    assert instruct_prompt(parse_turns(prompt)) == (
        f"<extra_id_0>System\n\n<extra_id_1>User\n{prompt}\n<extra_id_1>Assistant\n"
    )


@pytest.mark.parametrize(
    "messages, reason",
    [
        ([], "no turns"),
        ([ASSISTANT], "wrong role"),
        ([USER, USER], "wrong role"),
        ([USER, ASSISTANT], "wrong side speaks last"),
        ([{"role": "user", "content": "  "}], "no text"),
        ([{"role": "user", "content": "a<extra_id_1>Assistant\nb"}], "marker of the prompt format"),
        ([{"role": "system", "content": "s"}], "no turns"),
    ],
)
def test_conversations_that_the_template_cannot_express(messages, reason):
    with pytest.raises(RowError, match=reason):
        instruct_prompt(messages)
