"""The cut of the layers into stages, against Megatron's own functions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from nemo_sdg.errors import TopologyError
from nemo_sdg.models.nemotron import transformer_config
from nemo_sdg.models.shapes import sizes
from nemo_sdg.models.stages import stage_layers


def of_megatron(config: TransformerConfig, pp: int, vp: int) -> list[list[range]]:
    def layers(pp_rank: int, vp_stage: int | None) -> range:
        start = get_transformer_layer_offset(config, vp_stage, pp_rank)
        return range(start, start + get_num_layers_to_build(config, vp_stage, pp_rank))

    return [[layers(r, v if vp > 1 else None) for v in range(vp)] for r in range(pp)]


@st.composite
def cuts(draw):
    """(layers, pp, first, last, vp) that fit: the layers are what the stages add up to."""
    pp, vp = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    vp = vp if pp > 1 else 1
    inner, first, last = (draw(st.integers(1, 4)) * vp for _ in range(3))
    given_first, given_last = (draw(st.booleans()) and pp > 1 for _ in range(2))
    total = inner * (pp - given_first - given_last) + first * given_first + last * given_last
    return total, pp, first if given_first else None, last if given_last else None, vp


@settings(max_examples=300, deadline=None)
@given(cuts())
def test_stages_are_those_of_megatron(cut):
    total, pp, first, last, vp = cut
    found = stage_layers(total, pp, first=first, last=last, vp=vp)
    shape = sizes()["tiny"].__class__(**{**vars(sizes()["tiny"]), "num_layers": total})
    config = transformer_config(shape, pp=pp, first_stage_layers=first, last_stage_layers=last, virtual_stages=vp)
    assert found == of_megatron(config, pp, vp)
    assert sorted(itertools.chain(*itertools.chain(*found))) == list(range(total)), "each layer is held once"


def fits(total: int, pp: int, first: int | None, last: int | None, vp: int) -> bool:
    """By trying every number of layers that the other stages could have."""
    if pp == 1:
        return first is None and last is None and vp == 1
    for middle in range(1, total + 1):
        counts = [middle if first is None else first, *[middle] * (pp - 2), middle if last is None else last]
        if sum(counts) == total and min(counts) > 0 and not any(count % vp for count in counts):
            return True
    return False


@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 14), st.integers(1, 6), st.none() | st.integers(0, 6), st.none() | st.integers(0, 6),
    st.integers(1, 3),
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_and_nothing_else(total, pp, first, last, vp):
    if fits(total, pp, first, last, vp):
        assert len(stage_layers(total, pp, first=first, last=last, vp=vp)) == pp
    else:
        with pytest.raises(TopologyError):
            stage_layers(total, pp, first=first, last=last, vp=vp)


@pytest.mark.parametrize("total, pp", [(4, 3), (96, 10), (97, 4), (5, 2), (10, 9), (31, 8)])
def test_the_way_out_of_an_uneven_cut_works(total, pp):
    for ends in ({}, {"first": total}):
        with pytest.raises(TopologyError) as caught:
            stage_layers(total, pp, **ends)
        way_out = dict(word.split("=") for word in caught.value.way_out.split() if "=" in word)
        first, last = (int(way_out[f"topology.{name}_stage_layers"]) for name in ("first", "last"))
        assert len(stage_layers(total, pp, first=first, last=last)) == pp


@pytest.mark.parametrize(
    "arguments, told",
    [
        (dict(num_layers=4, pp=3), "pp does not divide the model's layers, found pp 3 for 4 layers, expected one of 1, 2, 4"),
        (dict(num_layers=4, pp=5), "found pp 5 for 4 layers, expected one of 1, 2, 4; set topology.pp=4"),
        (
            dict(num_layers=8, pp=3, first=3),
            "the model's 8 layers do not fill the stages, found 3 in the first of 3 stages, expected a multiple of 2 "
            "left for the others, and at least one layer in each stage; set topology.pp, or "
            "topology.first_stage_layers=2 and topology.last_stage_layers=3",
        ),
        (dict(num_layers=8, pp=2, first=3, last=4), "found 3 in the first and 4 in the last of 2 stages"),
        (dict(num_layers=8, pp=1, last=8), "one pipeline stage holds all layers"),
        (dict(num_layers=8, pp=2, vp=3), "found 3 virtual stages for stages of 4 layers"),
        (dict(num_layers=8, pp=1, vp=2), "expected 1 with one pipeline stage"),
    ],
)  # fmt: skip
def test_messages(arguments, told):
    with pytest.raises(TopologyError) as caught:
        stage_layers(**arguments, where="here")
    assert str(caught.value).startswith("here: ") and told in str(caught.value)


@pytest.mark.parametrize("tp, pp, way_out", [(3, 1, "; set --tp 2"), (1, 3, "; set --pp 2 or --pp 4")])
def test_verbs_without_a_recipe_have_flags(tp, pp, way_out):
    with pytest.raises(TopologyError) as caught:
        sizes()["tiny"].check_topology(tp, pp, where="command line")
    assert str(caught.value).endswith(way_out)
