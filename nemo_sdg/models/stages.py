"""Which layers each pipeline stage holds, readable without torch.

The same cut as Megatron's: NVIDIA/Megatron-LM core_v0.15.3: transformer_block.py `get_num_layers_to_build` and
transformer_layer.py `get_transformer_layer_offset`.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_sdg.config.loading import COMMAND_LINE
from nemo_sdg.errors import TopologyError


def stage_layers(
    num_layers: int,
    pp: int,
    *,
    first: int | None = None,
    last: int | None = None,
    vp: int = 1,
    where: object = "topology",
) -> list[list[range]]:
    """The global layers, counted from 0, of each chunk of the model: `stage_layers(...)[pp_rank][vp_stage]`.

    Args:
        first, last: layers of the first and of the last stage; None is as many as the others have.
        vp: virtual stages, the chunks of each pipeline stage; layers go round all stages once per virtual stage.
        where: what a message names.
    Raises:
        TopologyError: the layers cannot be cut like this.
    """
    counts = _counts(num_layers, pp, first, last, where)
    if vp < 1 or (vp > 1 and pp == 1) or any(count % vp for count in counts):
        raise TopologyError(
            "the stages cannot be cut into virtual stages",
            where=where,
            found=f"{vp} virtual stages for stages of {_listed(counts)} layers",
            expected="a number that divides the layers of every stage" if pp > 1 else "1 with one pipeline stage",
            way_out="change the number of virtual stages, or the layers of the stages",
        )
    chunks: list[list[range]] = [[] for _ in range(pp)]
    start = 0
    for _ in range(vp):
        for pp_rank, count in enumerate(counts):
            chunks[pp_rank].append(range(start, start + count // vp))
            start += count // vp
    return chunks


def _counts(num_layers: int, pp: int, first: int | None, last: int | None, where: object) -> list[int]:
    """Layers of each pipeline stage."""
    if first is None and last is None:
        if pp < 1 or num_layers % pp:
            valid = [n for n in range(1, min(num_layers, 128) + 1) if num_layers % n == 0]
            raise TopologyError(
                "pp does not divide the model's layers",
                where=where,
                found=f"pp {pp} for {num_layers} layers",
                expected=f"one of {', '.join(map(str, valid))}",
                way_out=_way_out(num_layers, pp, where, valid),
            )
        return [num_layers // pp] * pp
    ends = {name: count for name, count in (("first", first), ("last", last)) if count is not None}
    found = f"{' and '.join(f'{count} in the {name}' for name, count in ends.items())} of {pp} stages"
    if pp < 2:
        raise TopologyError(
            "one pipeline stage holds all layers",
            where=where,
            found=found,
            expected="pp of 2 or more",
            way_out="raise topology.pp, or set topology.first_stage_layers=null and topology.last_stage_layers=null",
        )
    others, rest = pp - len(ends), num_layers - sum(ends.values())
    fits = rest >= others and rest % others == 0 if others else rest == 0
    if min(ends.values()) < 1 or not fits:
        left = f"a multiple of {others} left for the others" if others else "all of them in these two"
        raise TopologyError(
            f"the model's {num_layers} layers do not fill the stages",
            where=where,
            found=found,
            expected=f"{left}, and at least one layer in each stage",
            way_out=_way_out(num_layers, pp, where),
        )
    middle = rest // others if others else 0
    return [ends.get("first", middle), *[middle] * (pp - 2), ends.get("last", middle)]


def setting(key: str, where: object, wanted: int, valid: Sequence[int] = ()) -> str:
    """How a user changes tp or pp, with the values that are nearest to what was wanted: on the command line of a verb
    without a recipe, there is a flag."""
    name, between = (f"--{key}", " ") if where == COMMAND_LINE else (f"topology.{key}", "=")
    if isinstance(where, str) and where.endswith(".topology"):
        name = f"{where}.{key}"
    near = [max((n for n in valid if n < wanted), default=None), min((n for n in valid if n > wanted), default=None)]
    return "set " + (" or ".join(f"{name}{between}{n}" for n in near if n is not None) or name)


def _way_out(num_layers: int, pp: int, where: object, valid: Sequence[int] = ()) -> str:
    """A cut that works; its end stages hold fewer layers if that can be: they hold the vocabulary too."""
    nearest = setting("pp", where, pp, valid)
    if where == COMMAND_LINE or not 2 <= pp <= num_layers:
        return nearest
    middle = -(-num_layers // pp) if pp > 2 else 0
    while (ends := num_layers - middle * (pp - 2)) < 2:
        middle -= 1
    return f"{nearest}, or topology.first_stage_layers={ends // 2} and topology.last_stage_layers={ends - ends // 2}"


def _listed(counts: list[int]) -> str:
    return ", ".join(str(count) for count in sorted(set(counts)))
