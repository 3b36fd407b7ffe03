"""The torch-free table of tensors and stages, against what Megatron says of one rank of the 340B model."""

from __future__ import annotations

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from ranks import run_ranks

from nemo_sdg.checkpoints.names import region, released_key, tensor_places
from nemo_sdg.engine.load import build_chunks
from nemo_sdg.models.shapes import sizes
from nemo_sdg.models.stages import stage_layers
from nemo_sdg.parallel.lone import lone_rank
from nemo_sdg.parallel.topology import Grid

SHAPE = sizes()["nemotron4_340b"]
Boxes = dict[tuple[str, int | None], tuple[tuple[int, ...], tuple[int, ...]]]
"""(released key, layer) -> (offset, sizes) of what a rank holds, with the layer axis of a stacked tensor."""


def of_megatron(
    _, tp, tp_rank, pp, pp_rank, vp, first, last, reward
) -> tuple[Boxes, Boxes, dict[str, tuple[int, ...]]]:
    """By name and layer number of each parameter, and by the offsets of Megatron's own checkpoints."""
    by_name, by_offset, global_shapes = {}, {}, {}
    grid = Grid(tp, pp, first_stage_layers=first, last_stage_layers=last)
    with lone_rank(grid, pp_rank * tp + tp_rank, vp) as mesh, torch.device("meta"):
        for chunk in build_chunks(SHAPE, mesh, dtype=torch.bfloat16, reward=reward, virtual_stages=vp):
            first_layer = chunk.decoder.layers[0].layer_number - 1
            for name, parameter in chunk.named_parameters():
                by_name[released_key(name, first_layer)] = tuple(parameter.shape)
            for entry in chunk.sharded_state_dict().values():
                if isinstance(entry, ShardedTensor):
                    stacked = entry.prepend_axis_num == 1
                    layer = entry.global_offset[0] if stacked else None
                    box = (entry.global_offset, (1, *entry.local_shape) if stacked else entry.local_shape)
                    by_offset[f"model.{entry.key}", layer] = box
                    global_shapes[f"model.{entry.key}"] = entry.global_shape
    return by_name, by_offset, global_shapes


def of_the_table(tp, tp_rank, pp, pp_rank, vp, first, last, reward) -> Boxes:
    layers = [
        layer for chunk in stage_layers(SHAPE.num_layers, pp, first=first, last=last, vp=vp)[pp_rank] for layer in chunk
    ]
    boxes = {}
    for key, place in tensor_places(SHAPE, reward=reward).items():
        held = {"layers": layers, "first": [None] * (pp_rank == 0), "last": [None] * (pp_rank == pp - 1)}
        for layer in held[place.stage]:
            box = region(place, layer, tp, tp_rank)
            boxes[key, layer] = tuple(s.start for s in box), tuple(s.stop - s.start for s in box)
    return boxes


@pytest.mark.parametrize(
    "pp, vp, first, last",
    [(12, 1, None, None), (24, 1, None, None), (12, 8, None, None), (12, 1, 6, 10), (8, 2, 10, 2)],
    ids=str,
)
def test_the_table_says_what_megatron_does(pp, vp, first, last):
    for tp_rank, pp_rank, reward in ((0, 0, False), (5, 1, False), (7, pp - 1, False), (3, pp - 1, True)):
        rank = (8, tp_rank, pp, pp_rank, vp, first, last, reward)
        by_name, by_offset, global_shapes = run_ranks(of_megatron, *rank)[0]
        expected = of_the_table(*rank)
        assert by_offset == expected
        assert by_name == {
            (key, layer): size if layer is None else size[1:] for (key, layer), (_, size) in expected.items()
        }
        places = tensor_places(SHAPE, reward=reward)
        assert global_shapes == {key: places[key].shape for key in global_shapes}
