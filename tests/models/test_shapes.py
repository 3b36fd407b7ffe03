from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_sdg.errors import CheckpointError, TopologyError
from nemo_sdg.models.shapes import NemotronShape, sizes


@pytest.mark.parametrize(
    "name, parameters",
    [("nemotron4_340b", 341_029_195_776), ("nemotron4_15b", 15.6e9), ("minitron_8b", 8.27e9), ("minitron_4b", 4.19e9)],
)
def test_parameter_counts_of_the_published_models(name, parameters):
    assert sizes()[name].num_parameters == pytest.approx(parameters, rel=0 if name == "nemotron4_340b" else 2e-3)


def test_the_config_comes_back():
    for shape in sizes().values():
        assert NemotronShape.from_model_config(shape.model_config(), "x", shape.vocab_size) == shape


def test_head_size_comes_from_the_config_and_only_else_from_a_division():
    config = sizes()["minitron_8b"].model_config()
    assert NemotronShape.from_model_config(config, "x", 1).query_size == 6144
    config = sizes()["nemotron4_340b"].model_config() | {"kv_channels": None}
    assert NemotronShape.from_model_config(config, "x", 1).kv_channels == 192


@pytest.mark.parametrize("tp, pp, what", [(3, 1, "KV groups"), (1, 3, "layers"), (4, 1, "KV groups")])
def test_topologies_that_do_not_fit(tp, pp, what):
    with pytest.raises(TopologyError, match=what):
        sizes()["tiny"].check_topology(tp, pp)


def test_uneven_stages_and_a_vocabulary_of_any_size_fit():
    shape = replace(sizes()["tiny"], vocab_size=389)
    shape.check_topology(2, 3, first_stage_layers=1, last_stage_layers=1)
    with pytest.raises(TopologyError, match="found 1 in the first of 3 stages"):
        shape.check_topology(2, 3, first_stage_layers=1)
    with pytest.raises(TopologyError, match="found tp 2 for 63 hidden channels, expected one of 1, 3, 7, 9, 21, 63"):
        replace(shape, hidden_size=63).check_topology(2, 1)


def test_the_released_topologies_fit():
    sizes()["nemotron4_340b"].check_topology(8, 12)
    sizes()["nemotron4_340b"].check_topology(8, 24)


def test_other_architectures_are_refused():
    config = sizes()["tiny"].model_config()
    for key, value in [("normalization", "rmsnorm"), ("activation", "swiglu"), ("bias", True)]:
        with pytest.raises(CheckpointError, match=key):
            NemotronShape.from_model_config(config | {key: value}, "x", 1)
    with pytest.raises(CheckpointError, match="hidden_size"):
        NemotronShape.from_model_config({k: v for k, v in config.items() if k != "hidden_size"}, "x", 1)
