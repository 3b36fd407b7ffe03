"""Keys and values of one lane, in blocks, and what the attention does with them in a prefill and in a decode step.

Keys are stored rotated. A forward pass is one packed sequence of tokens, whatever rows they belong to; each
token has a row and a position of its own. Nothing that a row computes depends on its neighbours: a piece of a prompt
attends by itself, and a decode step attends block by block.

Axes: L layers, K blocks, G local KV groups, P places in a block, D head channels, N tokens, H local query heads, M heads
per group, R rotary channels, T keys, J blocks of a row, U pseudo-blocks (a block as one of its rows sees it), S slots,
W rows that share a block, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_sdg.engine.budget import BLOCK, FOURS
from nemo_sdg.engine.jobs import Copy, Decode, Prefill
from nemo_sdg.models.attention import KeyValues


class KeyValueCache:
    """The memory of one lane on this rank."""

    def __init__(self, model: torch.nn.Module, blocks: int) -> None:
        config, layers = model.config, model.decoder.layers
        groups = config.num_query_groups // config.tensor_model_parallel_size
        place = {"dtype": config.params_dtype, "device": next(model.parameters()).device}
        shape = (len(layers), blocks, groups, BLOCK, config.kv_channels)
        # Zeros: what a mask hides is still multiplied, and 0 x nan would be nan.
        self.key_LKGPD = torch.zeros(shape, **place)
        self.value_LKGPD = torch.zeros(shape, **place)
        self.first_layer = layers[0].layer_number if len(layers) else 1

    @property
    def nbytes(self) -> int:
        return self.key_LKGPD.nbytes + self.value_LKGPD.nbytes

    def wipe(self, blocks: Sequence[int]) -> None:
        """Of a row that was not finite."""
        for tensor in (self.key_LKGPD, self.value_LKGPD):
            tensor[:, list(blocks)] = 0


def copy_blocks(caches: Sequence[KeyValueCache], copies: Sequence[Copy]) -> None:
    """Copies blocks within a lane or from one to another."""
    by_lanes: dict[tuple[int, int], dict[int, int]] = {}
    for source, block, target, to in copies:
        by_lanes.setdefault((source, target), {})[to] = block
    for (source, target), pairs in by_lanes.items():
        old, new = caches[source], caches[target]
        for read, written in ((old.key_LKGPD, new.key_LKGPD), (old.value_LKGPD, new.value_LKGPD)):
            written[:, list(pairs)] = read[:, list(pairs.values())]


class Step(KeyValues):
    """A packed forward pass: where its tokens stand."""

    def __init__(self, model: torch.nn.Module, positions_N: np.ndarray) -> None:
        # Megatron asks for it to make angles that nobody reads; this many it makes once.
        self.max_sequence_length = model.max_sequence_length
        angles_PR = model.rotary_pos_emb(self.max_sequence_length)[:, 0, 0]
        at_N = torch.from_numpy(positions_N).to(angles_PR.device)
        angles_N11R = angles_PR[at_N][:, None, None]
        dtype = model.config.params_dtype
        self.cos_S11R, self.sin_S11R = angles_N11R.cos().to(dtype), angles_N11R.sin().to(dtype)


class PrefillStep(Step):
    """Pieces of prompts. Each attends to the blocks of its own prompt, with a matrix product of its own size."""

    def __init__(self, model: torch.nn.Module, cache: KeyValueCache, job: Prefill, ends: int) -> None:
        """
        Args:
            ends: rows that go through the output layer; more than one prompt may end here, and their number must
                not decide the shape.
        """
        positions_N = np.zeros(job.size, dtype=np.int64)
        block_N, place_N = np.zeros((2, len(job.token_ids)), dtype=np.int64)
        for unit in job.units:
            here = slice(unit.offset, unit.offset + unit.count)
            positions_N[here] = np.arange(unit.start, unit.start + unit.count)
            block_N[here], place_N[here] = unit.blocks[-1], np.arange(unit.count)
        super().__init__(model, positions_N)
        self._cache, self._units, self._num_real = cache, job.units, len(job.token_ids)
        at = cache.key_LKGPD.device
        self._block_N, self._place_N = torch.from_numpy(block_N).to(at), torch.from_numpy(place_N).to(at)
        self._table = [torch.tensor(unit.blocks, device=at) for unit in job.units]
        # Of a block's queries, each sees the blocks before it and its own block up to itself.
        self._causal_PP = torch.ones((BLOCK, BLOCK), dtype=torch.bool, device=at).tril()
        last = [place for place, _ in job.ends]
        self._last = torch.tensor(last + [0] * (ends - len(last)), device=at)

    def attend(self, layer: int, query_SBHD: Tensor, key_SBGD: Tensor, value_SBGD: Tensor) -> Tensor:
        index = layer - self._cache.first_layer
        key_KGPD, value_KGPD = self._cache.key_LKGPD[index], self._cache.value_LKGPD[index]
        key_KGPD[self._block_N, :, self._place_N] = key_SBGD[: self._num_real, 0]
        value_KGPD[self._block_N, :, self._place_N] = value_SBGD[: self._num_real, 0]
        context_SBHD = torch.zeros_like(query_SBHD)
        num_groups = key_SBGD.size(2)
        for unit, table in zip(self._units, self._table):
            here = slice(unit.offset, unit.offset + unit.count)
            key_1GTD = key_KGPD[table].transpose(0, 1).flatten(1, 2)[None]
            value_1GTD = value_KGPD[table].transpose(0, 1).flatten(1, 2)[None]
            # The heads of a group stand behind one another as if they were queries: no key is copied per head.
            query_GMSD = query_SBHD[here, 0].unflatten(1, (num_groups, -1)).permute(1, 2, 0, 3)
            visible_ST = torch.nn.functional.pad(self._causal_PP[: unit.count], (unit.start, 0), value=True)
            visible_QT = visible_ST.repeat(query_GMSD.size(1), 1)
            made_1GQD = scaled_dot_product_attention(
                query_GMSD.flatten(1, 2)[None], key_1GTD, value_1GTD, attn_mask=visible_QT
            )
            made_GMSD = made_1GQD[0].unflatten(1, query_GMSD.shape[1:3])
            context_SBHD[here, 0] = made_GMSD.permute(2, 0, 1, 3).flatten(1, 2)
        return context_SBHD

    def select(self, hidden_SBE: Tensor) -> Tensor:
        """The last token of each prompt that ends here: [ends, 1, E]."""
        return hidden_SBE[self._last]

    def is_decode_only(self) -> bool:
        return False


class DecodeStep(Step):
    """One token for each slot.

    Scores are made block by block where the blocks lie, brought together for the softmax of each row, and taken apart
    again to weigh the values: flash decoding (Dao et al., 2023) with the split at the blocks. What several rows share is
    read once for all of them, as in Hydragen (Juravsky et al., arXiv 2402.05099).
    """

    def __init__(self, model: torch.nn.Module, cache: KeyValueCache, job: Decode) -> None:
        rows = [(slot, row) for slot, row in enumerate(job.rows) if row is not None]
        length_S = np.ones(len(job.rows), dtype=np.int64)
        for slot, row in rows:
            length_S[slot] = row.length
        super().__init__(model, length_S - 1)
        self._cache = cache
        heads = model.config.num_attention_heads // model.config.num_query_groups
        self._lay_out(rows, len(job.rows), heads)
        at = cache.key_LKGPD.device
        active, last = [slot for slot, _ in rows], [row.blocks[-1] for _, row in rows]
        place = [(row.length - 1) % BLOCK for _, row in rows]
        self._active, self._block, self._place = (torch.tensor(values, device=at) for values in (active, last, place))
        keys = self._table_SJ.size(1) * BLOCK
        hidden_ST = torch.arange(keys, device=at) >= torch.from_numpy(length_S).to(at)[:, None]
        self._hidden_S1T = hidden_ST[:, None]
        # On a CPU a single query is a product of matrix and vector, and much faster than a few at a time.
        self._one_by_one = at.type == "cpu" and heads < 4

    def _lay_out(self, rows: list, slots: int, heads: int) -> None:
        """Which blocks are read, for whom, and where a row finds its own.

        Sets the slice of blocks that one row each reads, that of the shared ones, the slots that share each of
        these [K, W], owner and place of each pseudo-block [U], and the pseudo-blocks of each slot [S, J].
        """
        # One alone, or one more than fours of what a row adds up, would be rounded in a way of its own.
        self._own = max(2, 1 + max((block for _, row in rows for block in row.blocks), default=-1))
        groups = list(dict.fromkeys(row.group for _, row in rows if row.group.shared))
        shared = [block for group in groups for block in group.shared]
        self._shared_from = min(shared, default=self._cache.key_LKGPD.size(1))
        num_shared = max(shared) + 1 - self._shared_from if shared else 0
        width = max((group.width for group in groups), default=1)
        while width * heads % 4:  # below four rows a matrix product rounds otherwise, and beyond them in fours
            width += 1
        member_KW = np.zeros((num_shared, width), dtype=np.int64)
        owner_U, place_U = np.zeros((2, self._own + num_shared * width), dtype=np.int64)
        tables, seat = [], dict.fromkeys(groups, -1)
        for slot, row in rows:
            prefix: list[int] = []
            if row.group.shared:
                mine = seat[row.group] = seat[row.group] + 1
                seen = np.array(row.group.shared) - self._shared_from
                member_KW[seen, mine] = slot
                prefix = (self._own + seen * width + mine).tolist()
            tables.append(prefix + row.blocks)
        sizes = np.array([len(table) for table in tables], dtype=np.int64)
        # Behind the last pseudo-block stands one of zeros, for the empty end of a row.
        width_J = sizes.max(initial=1)
        table_SJ = np.full((slots, width_J + -width_J % FOURS), len(owner_U), dtype=np.int64)
        every = np.fromiter(chain.from_iterable(tables), dtype=np.int64, count=sizes.sum())
        slot_of = np.repeat(np.array([slot for slot, _ in rows], dtype=np.int64), sizes)
        place_of = np.arange(len(every)) - np.repeat(sizes.cumsum() - sizes, sizes)
        table_SJ[slot_of, place_of] = every
        owner_U[every], place_U[every] = slot_of, place_of
        at = self._cache.key_LKGPD.device
        owner_U, place_U = torch.from_numpy(owner_U), torch.from_numpy(place_U)
        self._owner_U, self._table_SJ = owner_U.to(at), torch.from_numpy(table_SJ).to(at)
        # Where a pseudo-block stands among the blocks of all rows, slot by slot.
        self._stand_U = (owner_U * table_SJ.shape[1] + place_U).to(at)
        self._member_KW = torch.from_numpy(member_KW).to(at)

    def attend(self, layer: int, query_SBHD: Tensor, key_SBGD: Tensor, value_SBGD: Tensor) -> Tensor:
        index = layer - self._cache.first_layer
        key_KGPD, value_KGPD = self._cache.key_LKGPD[index], self._cache.value_LKGPD[index]
        key_KGPD[self._block, :, self._place] = key_SBGD[self._active, 0]
        value_KGPD[self._block, :, self._place] = value_SBGD[self._active, 0]
        num_slots, num_groups, channels = query_SBHD.size(0), key_SBGD.size(2), key_SBGD.size(3)
        query_MSGD = query_SBHD.view(num_slots, num_groups, -1, channels).permute(2, 0, 1, 3) * channels**-0.5
        score_MUGP = self._weigh(query_MSGD.index_select(1, self._owner_U), key_KGPD.transpose(-1, -2))
        score_MSGJP = self._by_row(score_MUGP).transpose(2, 3)
        score_MSGT = score_MSGJP.flatten(3).masked_fill_(self._hidden_S1T, -torch.inf)
        share_MSGJP = score_MSGT.softmax(dim=-1).unflatten(3, score_MSGJP.shape[3:])
        share_MUGP = share_MSGJP.transpose(2, 3).flatten(1, 2).index_select(1, self._stand_U)
        part_MUGD = self._weigh(share_MUGP, value_KGPD)
        context_MSGD = self._by_row(part_MUGD).sum(dim=2)
        return context_MSGD.permute(1, 2, 0, 3).reshape(query_SBHD.shape).to(query_SBHD.dtype)

    def _by_row(self, made_MUGX: Tensor) -> Tensor:
        """What was made for the pseudo-blocks, as the rows have them: [M, S, J, G, X]."""
        return made_MUGX.index_select(1, self._table_SJ.flatten()).unflatten(1, self._table_SJ.shape)

    def _weigh(self, left_MUGX: Tensor, right_KGXY: Tensor) -> Tensor:
        """left @ right for every pseudo-block, and zeros for the one behind the last: [M, U + 1, G, Y]."""
        heads, count, groups, _ = left_MUGX.shape
        wide = torch.promote_types(right_KGXY.dtype, torch.float32)
        out_MUGY = left_MUGX.new_empty((heads, count + 1, groups, right_KGXY.size(-1)), dtype=wide)
        out_MUGY[:, count] = 0
        own_OXY = right_KGXY[: self._own].flatten(0, 1)
        if self._one_by_one:
            for head in range(heads):
                left_O1X = left_MUGX[head, : self._own].flatten(0, 1)[:, None]
                _product(left_O1X, own_OXY, out=out_MUGY[head, : self._own].flatten(0, 1)[:, None])
        else:
            left_OMX = left_MUGX[:, : self._own].permute(1, 2, 0, 3).flatten(0, 1)
            made_OMY = _product(left_OMX, own_OXY)
            out_MUGY[:, : self._own] = made_OMY.unflatten(0, (-1, groups)).permute(2, 0, 1, 3)
        blocks, width = self._member_KW.shape
        if blocks:
            left_MKWGX = left_MUGX[:, self._own :].unflatten(1, (blocks, width))
            left_OQX = left_MKWGX.permute(1, 3, 2, 0, 4).reshape(blocks * groups, width * heads, -1)
            shared_OXY = right_KGXY[self._shared_from : self._shared_from + blocks].flatten(0, 1)
            made_KGWMY = _product(left_OQX, shared_OXY).view(blocks, groups, width, heads, -1)
            out_MUGY[:, self._own : count] = made_KGWMY.permute(3, 0, 2, 1, 4).flatten(1, 2)
        return out_MUGY

    def select(self, hidden_SBE: Tensor) -> Tensor:
        return hidden_SBE

    def is_decode_only(self) -> bool:
        return True


def _product(left_OXY: Tensor, right_OYZ: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right; of half precisions in fp32, as fused attention kernels keep their scores and sums."""
    if right_OYZ.dtype not in (torch.bfloat16, torch.float16):
        return torch.bmm(left_OXY, right_OYZ, out=out)
    if right_OYZ.is_cuda:
        return torch.bmm(left_OXY.to(right_OYZ.dtype), right_OYZ, out_dtype=torch.float32)
    return torch.bmm(left_OXY.float(), right_OYZ.float(), out=out)
