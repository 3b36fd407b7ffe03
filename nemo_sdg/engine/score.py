"""Nine rewards per conversation from a reward model, under any TP x PP. Axes: B rows, S tokens, A outputs."""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np
import torch

from nemo_sdg.engine.pipeline import forward
from nemo_sdg.errors import RowError
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS
from nemo_sdg.models.templates import ATTRIBUTE_SLOTS, reward_prompt
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh

Conversation = Sequence[Mapping[str, str]]


def encode(tokenizer: Tokenizer, conversation: Conversation, context: int) -> list[int]:
    """Token ids of a conversation as the reward model reads it.

    Raises:
        RowError: the templates cannot express it, or it is longer than the context; cutting it would remove
            the token at which the reward is read.
    """
    ids = tokenizer.encode(reward_prompt(conversation))
    if len(ids) > context:
        raise RowError(
            "the conversation is longer than the context", found=f"{len(ids)} tokens", expected=f"at most {context}",
            way_out="shorten it",
        )  # fmt: skip
    return ids


@torch.no_grad()
def score(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    conversations: Sequence[Sequence[int]],
    slots: int,
    on_finished: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Rewards float32 [rows, A] of encoded conversations, in their order, on every rank of the replica.

    Rows of similar length go through the model together, `slots` at a time.
    """
    rewards_RA = np.empty((len(conversations), NUM_REWARD_OUTPUTS), dtype=np.float32)
    order = sorted(range(len(conversations)), key=lambda index: (len(conversations[index]), index))
    for start in range(0, len(order), slots):
        chosen = order[start : start + slots]
        rows = [conversations[index] for index in chosen]
        lengths = [len(row) for row in rows]
        ids_BS = np.full((len(rows), max(lengths)), tokenizer.eos_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids_BS[index, : len(row)] = row
        at = device.device()
        output = forward(model, mesh, torch.from_numpy(ids_BS).to(at), lengths=torch.tensor(lengths, device=at))
        rewards_BA = torch.empty((len(rows), NUM_REWARD_OUTPUTS), dtype=torch.float32, device=at)
        if output is not None:
            rewards_BA.copy_(output)
        rewards_RA[chosen] = mesh.broadcast_from_last_stage(rewards_BA).cpu().numpy()
        if on_finished:
            on_finished(len(rows))
    return rewards_RA


def named(rewards_A: np.ndarray) -> dict[str, float]:
    """The five attributes of one row by name, neither clamped nor rounded, in shortest decimal of float32.

    The shortest decimal hides last digits that differ between topologies in fp64.
    """
    return {name: float(str(rewards_A[slot])) for name, slot in ATTRIBUTE_SLOTS.items()}
