from __future__ import annotations

import pytest

from nemo_sdg.config import Topology, Training
from nemo_sdg.errors import TopologyError
from nemo_sdg.parallel.topology import check_global_batch, data_parallel_size


@pytest.mark.parametrize(
    "topology, world, dp", [(Topology(), 1, 1), (Topology(tp=2), 8, 4), (Topology(tp=2, pp=2, dp=2), 8, 2)]
)
def test_replicas_fill_the_launch(topology, world, dp):
    assert data_parallel_size(topology, world) == dp


@pytest.mark.parametrize("topology, world", [(Topology(tp=2), 3), (Topology(pp=4), 2), (Topology(dp=3), 2)])
def test_launches_that_do_not_fit(topology, world):
    with pytest.raises(TopologyError, match=f"found {world} ranks"):
        data_parallel_size(topology, world)


def test_batch_sizes_that_do_not_divide_name_the_nearest():
    with pytest.raises(TopologyError, match=r"a multiple of 12; set sft.global_batch_size=24$"):
        check_global_batch(Training(global_batch_size=20, micro_batch_size=4), dp=3, where="sft")
    check_global_batch(Training(global_batch_size=24, micro_batch_size=4), dp=3, where="sft")
