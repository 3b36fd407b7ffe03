"""A dataset's rows in the shapes that others read: NeMo's JSONL and the columns of TRL.

Sources: NVIDIA/NeMo: nemo/collections/llm/gpt/data/core.py and utils.py (chat); NVIDIA/NeMo-Aligner:
nemo_aligner/data/nlp/datasets.py (`text, label`; `prompt, chosen_response, rejected_response`) and
docs/user-guide/dpo.rst (rewards, the end of a response); huggingface/trl: docs/source/dataset_formats.md. All
leave a key that they do not know, our `id`, alone: NeMo hands it on as metadata, NeMo-Aligner asks for its own by name.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from nemo_sdg.config import ATTRIBUTES, MISSING, OUTPUTS
from nemo_sdg.errors import RowError
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS
from nemo_sdg.models.templates import instruct_prompt, preference_texts, reward_prompt
from nemo_sdg.records import Pair
from nemo_sdg.records.fields import Message

if TYPE_CHECKING:
    import pyarrow

Scores = Mapping[str, float]
"""As a row's file has them: float32 in the fewest decimals. Only a row of `regression_row` may hold NaN."""


def chat_row(name: str, messages: Sequence[Message], response: str) -> dict[str, Any]:
    """A dialogue in NeMo's SFT chat format; `mask` names the side that is not trained on."""
    turns = [*messages, _assistant(response)]
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    said = [{"from": turn["role"].capitalize(), "value": turn["content"], "label": None} for turn in turns]
    return {"id": name, "system": system, "mask": "User", "type": None, "conversations": said}


def regression_row(
    name: str, messages: Sequence[Message], response: str, scores: Scores, outputs: Mapping[str, int] = OUTPUTS
) -> dict[str, Any]:
    """A scored answer in NeMo-Aligner's regression format: the reward prompt and nine labels.

    Args:
        outputs: the output that learns each score.
    Raises RowError when the prompt format cannot express it, or a score is not finite.
    """
    text = reward_prompt([*messages, _assistant(response)])
    names = {slot: name for name, slot in outputs.items()}
    label = [scores.get(names.get(output), MISSING) for output in range(NUM_REWARD_OUTPUTS)]
    if not all(map(math.isfinite, label)):
        raise RowError("score not finite")
    return {"id": name, "text": text, "label": label}


def preference_row(pair: Pair) -> dict[str, Any]:
    """A pair in NeMo-Aligner's format for DPO and RPO. Raises RowError when the prompt format cannot express it."""
    return {
        "id": pair.id,
        **preference_texts(pair.messages, pair.chosen, pair.rejected),
        "chosen_reward": pair.score_chosen,
        "rejected_reward": pair.score_rejected,
    }


def chat_columns(
    name: str, messages: Sequence[Message], response: str, scores: Scores, own: Sequence[str] = ()
) -> dict[str, Any]:
    """TRL's conversational language modeling."""
    return {"id": name, "messages": [*messages, _assistant(response)], "scores": _or_null(scores, own)}


def regression_columns(
    name: str, messages: Sequence[Message], response: str, scores: Scores, own: Sequence[str] = ()
) -> dict[str, Any]:
    """HelpSteer2's columns, with the prompt as messages; what nobody scored is null."""
    return {"id": name, "messages": list(messages), "response": response, **_or_null(scores, own)}


def preference_columns(pair: Pair, own: Sequence[str] = ()) -> dict[str, Any]:
    """TRL's conversational preference with an explicit prompt."""
    return {
        "id": pair.id,
        "prompt": list(pair.messages),
        "chosen": [_assistant(pair.chosen)],
        "rejected": [_assistant(pair.rejected)],
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
        "margin": pair.margin,
        "judge": pair.judge,
        "scores_chosen": pair.scores_chosen and _or_null(pair.scores_chosen, own),
        "scores_rejected": pair.scores_rejected and _or_null(pair.scores_rejected, own),
    }


def schema(kind: str, own: Sequence[str] = ()) -> pyarrow.Schema:
    """The columns of `sft`, `reward` or `preference`; `own` are scores beside the five attributes."""
    import pyarrow as pa

    messages = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    # Doubles, so that a number here is the shortest decimal that stands in the JSONL.
    scores = {name: pa.float64() for name in (*ATTRIBUTES, *own)}
    pair = dict.fromkeys(("score_chosen", "score_rejected", "margin"), pa.float64()) | {"judge": pa.string()}
    pair |= dict.fromkeys(("scores_chosen", "scores_rejected"), pa.struct(scores))
    columns = {
        "sft": {"messages": messages, "scores": pa.struct(scores)},
        "reward": {"messages": messages, "response": pa.string(), **scores},
        "preference": dict.fromkeys(("prompt", "chosen", "rejected"), messages) | pair,
    }
    return pa.schema({"id": pa.string(), **columns[kind]})


def template_digests() -> dict[str, str]:
    """16 hex digits for each prompt format, of what it makes of one conversation."""
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    made = {"instruct": instruct_prompt(messages[:-1]), "reward": reward_prompt(messages)}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in made.items()}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _or_null(scores: Scores, own: Sequence[str]) -> dict[str, float | None]:
    """The five attributes and the user's own; None where nobody scored."""
    told = {name: scores.get(name, MISSING) for name in (*ATTRIBUTES, *own)}
    return {name: None if score == MISSING else score for name, score in told.items()}
