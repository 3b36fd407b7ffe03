"""The prompt formats of Nemotron-4 Instruct and Reward, as strings.

Sources: model card of Nemotron-4-340B-Instruct; NVIDIA/NeMo: nemo/collections/nlp/data/language_modeling/
megatron/gpt_sft_chat_dataset.py; NVIDIA/NeMo-Aligner: examples/nlp/data/steerlm/common.py and
process_to_regression_format.py. There is no BOS and no EOS; a turn ends where the next `<extra_id_1>` begins.
"""

from __future__ import annotations

import re
from typing import Mapping, Sequence

from nemo_sdg.errors import RowError

SYSTEM = "<extra_id_0>"
TURN = "<extra_id_1>"
LABEL = "<extra_id_2>"
ROLES = {"user": "User", "assistant": "Assistant"}

REWARD_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The reward model was trained with this system text, Instruct with an empty one; mixing them shifts scores."""

OUTPUT_NAMES = (
    "quality", "toxicity", "humor", "creativity",
    "helpfulness", "correctness", "coherence", "complexity", "verbosity",
)  # fmt: skip
"""The nine outputs of the reward head in order; the first four were never trained."""

ATTRIBUTE_SLOTS = {name: slot for slot, name in enumerate(OUTPUT_NAMES) if slot >= 4}
"""Output index of each HelpSteer attribute."""

Message = Mapping[str, str]
_MARKER = re.compile(r"<extra_id_\d+>")


def check_messages(messages: Sequence[Message], *, last: str, where: object = "messages") -> tuple[str, list[Message]]:
    """The system text and the turns of a conversation that the templates can express.

    Args:
        last: the role that must speak last, "user" or "assistant".
    Raises:
        RowError: no turns, a role out of order, an empty turn, or a text that holds a marker of the format.
    """
    turns = list(messages)
    system = ""
    if turns and turns[0].get("role") == "system":
        system = turns.pop(0)["content"]
    if not turns:
        raise RowError("the conversation has no turns", where=where, expected="at least one user message")
    for index, turn in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.get("role") != expected:
            raise RowError(
                f"turn {index} has the wrong role",
                where=where,
                found=repr(turn.get("role")),
                expected=f"{expected} (user and assistant take turns, a system message may stand first)",
            )
    for name, text in [("system", system)] + [(f"turn {i}", turn.get("content")) for i, turn in enumerate(turns)]:
        if not isinstance(text, str) or (name != "system" and not text.strip()):
            raise RowError(f"{name} has no text", where=where, found=repr(text)[:40], expected="a text")
        marker = _MARKER.search(text)
        if marker:
            raise RowError(
                f"{name} holds a marker of the prompt format",
                where=where,
                found=marker.group(),
                expected="plain text",
                way_out="split the text into turns or remove the marker",
            )
    if turns[-1]["role"] != last:
        raise RowError("the wrong side speaks last", where=where, found=turns[-1]["role"], expected=last)
    return system, turns


def _conversation(system: str, turns: Sequence[Message]) -> str:
    spoken = "".join(f"{TURN}{ROLES[turn['role']]}\n{turn['content']}\n" for turn in turns)
    return f"{SYSTEM}System\n{system}\n{spoken}"


def instruct_prompt(messages: Sequence[Message]) -> str:
    """What Instruct continues: the conversation, ending in `<extra_id_1>Assistant\\n`."""
    system, turns = check_messages(messages, last="user")
    return f"{_conversation(system, turns)}{TURN}{ROLES['assistant']}\n"


def preference_texts(messages: Sequence[Message], chosen: str, rejected: str) -> dict[str, str]:
    """A prompt and two answers to it as NeMo-Aligner's preference tuning reads them: each answer ends its turn.

    Source: NVIDIA/NeMo-Aligner: docs/user-guide/dpo.rst. Raises RowError for a prompt that the format cannot express.
    """
    return {
        "prompt": instruct_prompt(messages),
        "chosen_response": f"{chosen}\n{TURN}",
        "rejected_response": f"{rejected}\n{TURN}",
    }


def reward_prompt(messages: Sequence[Message]) -> str:
    """What Reward scores: the conversation under the fixed system text, ending in `<extra_id_2>`.

    A system message of the conversation itself is not part of the format and is left out.
    """
    _, turns = check_messages(messages, last="assistant")
    return f"{_conversation(REWARD_SYSTEM_PROMPT, turns)}{LABEL}"


def as_reward_prompt(prompt: str, response: str) -> str:
    """What Reward scores, from the text that Instruct continues and its answer with the `<extra_id_1>` after it.

    Raises:
        RowError: one of the two is not of the format.
    """
    begin, end = f"{SYSTEM}System\n", f"{TURN}{ROLES['assistant']}\n"
    if not isinstance(prompt, str) or not prompt.startswith(begin) or not prompt.endswith(end):
        raise RowError("the prompt is not what Instruct continues", found=repr(prompt)[:40], expected=f"{begin!r} to {end!r}")
    if not isinstance(response, str) or not response.endswith(f"\n{TURN}"):
        raise RowError("the response does not end its turn", found=repr(response)[-40:], expected=repr(f"\n{TURN}"))
    answer = response.removesuffix(TURN)
    if not answer.strip() or _MARKER.search(answer):
        raise RowError("the response is empty or holds a marker of the prompt format", found=repr(answer)[:40])
    return f"{begin}{REWARD_SYSTEM_PROMPT}\n{prompt[prompt.index(TURN):]}{answer}{LABEL}"


def sft_text(messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The training text of a dialogue and the character spans [start, end) that are in the loss.

    In the loss: what the assistant says with its closing newline, and the `<extra_id_1>` that follows it
    (the real end of turn), be it the opening of the next user turn or the one appended at the end.
    """
    system, turns = check_messages(messages, last="assistant")
    text = _conversation(system, turns) + TURN
    spans = []
    position = len(_conversation(system, []))
    for turn in turns:
        begin = position + len(f"{TURN}{ROLES[turn['role']]}\n")
        position = begin + len(turn["content"]) + 1
        if turn["role"] == "assistant":
            spans.append((begin, position + len(TURN)))
    return text, spans
