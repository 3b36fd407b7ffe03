from __future__ import annotations

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
