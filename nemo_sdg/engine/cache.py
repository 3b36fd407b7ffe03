"""Keys and values of the rows that are being decoded, one slot per row, each at a position of its own.

Keys are stored rotated. Every decode step runs all slots, so its number of rows does not depend on how many are
still going. Axes: B slots, N rows of a prefill, G local KV groups, P positions, T positions in use, D head channels,
R rotary channels, S new tokens per row, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_sdg.parallel import device

KEY_BLOCK = 64
"""Keys grow in blocks of this size: the rounding of attention depends on the number of keys (also masked ones)."""


class KeyValueCache:
    """What Megatron's layers receive as `inference_context`: see `models.attention.KeyValues`."""

    def __init__(self, model: torch.nn.Module, slots: int, max_length: int) -> None:
        max_length = -(-max_length // KEY_BLOCK) * KEY_BLOCK
        config = model.config
        groups = config.num_query_groups // config.tensor_model_parallel_size
        place = {"dtype": config.params_dtype, "device": device.device()}
        shape = (len(model.decoder.layers), slots, groups, max_length, config.kv_channels)
        self.max_sequence_length = max_length
        self._key_LBGPD = torch.zeros(shape, **place)
        self._value_LBGPD = torch.zeros(shape, **place)
        self._first_layer = model.decoder.layers[0].layer_number if len(model.decoder.layers) else 1
        angles_PR = model.rotary_pos_emb(max_length)[:, 0, 0]
        self._cos_PR, self._sin_PR = angles_PR.cos().to(place["dtype"]), angles_PR.sin().to(place["dtype"])
        self._positions_P = torch.arange(max_length, device=place["device"])
        self.lengths_B = torch.zeros(slots, dtype=torch.long, device=place["device"])
        self._rows_B = torch.arange(slots, device=place["device"])
        self._prefill_slots_N: Tensor | None = None

    def begin_prefill(self, slots: list[int], lengths: list[int]) -> None:
        """The next forward brings whole prompts [N, S] for these slots, padded on the right to the longest."""
        at = self.lengths_B.device
        self._prefill_slots_N = torch.tensor(slots, device=at)
        self._prefill_lengths_N = torch.tensor(lengths, device=at)
        self.lengths_B[self._prefill_slots_N] = self._prefill_lengths_N
        longest = max(lengths)
        self.cos_SB1R = self._cos_PR[:longest, None, None]
        self.sin_SB1R = self._sin_PR[:longest, None, None]

    def begin_decode(self) -> None:
        """The next forward brings one token for each slot [B, 1]; `end_decode` moves the positions on."""
        self._prefill_slots_N = None
        self.cos_SB1R = self._cos_PR[self.lengths_B][None, :, None]
        self.sin_SB1R = self._sin_PR[self.lengths_B][None, :, None]
        used = int(self.lengths_B.max()) + 1
        self._used = -(-used // KEY_BLOCK) * KEY_BLOCK
        self._visible_B11T = (self._positions_P[: self._used] <= self.lengths_B[:, None])[:, None, None]

    def end_decode(self) -> None:
        """The rows have one token more; an empty slot stays at the front."""
        self.lengths_B.add_((self.lengths_B > 0).long())

    def free(self, slot: int, *, wipe: bool) -> None:
        """A slot without a row: it goes back to position 0, so that it does not lengthen the steps of the others.

        Args:
            wipe: its keys and values were not finite; masked ones would still spoil the next row (0 x nan).
        """
        self.lengths_B[slot] = 0
        if wipe:
            self._key_LBGPD[:, slot] = 0
            self._value_LBGPD[:, slot] = 0

    def extend(self, layer: int, key_SBGD: Tensor, value_SBGD: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer (numbered from 1 over the whole model); all of its rows', BGTD."""
        key_BGPD = self._key_LBGPD[layer - self._first_layer]
        value_BGPD = self._value_LBGPD[layer - self._first_layer]
        if self._prefill_slots_N is not None:
            key_NGSD, value_NGSD = key_SBGD.permute(1, 2, 0, 3), value_SBGD.permute(1, 2, 0, 3)
            key_BGPD[self._prefill_slots_N, :, : key_NGSD.size(2)] = key_NGSD
            value_BGPD[self._prefill_slots_N, :, : value_NGSD.size(2)] = value_NGSD
            return key_NGSD, value_NGSD
        key_BGPD[self._rows_B, :, self.lengths_B] = key_SBGD[0]
        value_BGPD[self._rows_B, :, self.lengths_B] = value_SBGD[0]
        return key_BGPD[:, :, : self._used], value_BGPD[:, :, : self._used]

    def mask(self) -> Tensor | None:
        """Causal over a prompt (what is padded on the right, nobody before it sees); own past in a decode step."""
        return None if self._prefill_slots_N is not None else self._visible_B11T

    def select(self, hidden_SBE: Tensor) -> Tensor:
        """Only the last token of each row becomes logits: [1, N or B, E]."""
        if self._prefill_slots_N is None:
            return hidden_SBE
        rows_N = torch.arange(hidden_SBE.size(1), device=hidden_SBE.device)
        return hidden_SBE[self._prefill_lengths_N - 1, rows_N][None]

    # What megatron's layers ask an inference context.
    def is_static_batching(self) -> bool:
        return True

    def is_dynamic_batching(self) -> bool:
        return False

    def is_decode_only(self) -> bool:
        return self._prefill_slots_N is None
