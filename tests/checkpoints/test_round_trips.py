"""release -> nemo2 -> hf -> release: every bit comes back, whatever the model, the topology, the grid and the dtype."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checkpoints import assert_same, files_of, little_shape, random_bits, read_bits, write_release

from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.names import architecture
from nemo_sdg.checkpoints.release_writer import array_header
from nemo_sdg.console import Console

HEADS = [(4, 2), (4, 4), (2, 1), (6, 2)]
"""Attention heads and KV groups: grouped, plain multi-head, one group, three heads to a group."""


@st.composite
def draws(draw) -> dict:  # noqa: ANN001
    heads, groups = draw(st.sampled_from(HEADS))
    topology = st.tuples(st.sampled_from([t for t in (1, 2, 4) if groups % t == 0]), st.sampled_from([1, 2, 3, 4]))
    reward = draw(st.booleans())
    return {
        "shape": {
            "num_layers": 12 if draw(st.integers(0, 9)) == 0 else 4 if draw(st.booleans()) else 3,
            "hidden_size": draw(st.sampled_from([12, 16])),
            "ffn_hidden_size": draw(st.sampled_from([12, 28])),
            "kv_channels": draw(st.sampled_from([2, 6, 10])),  # hidden / heads is none of them for most heads
            "num_attention_heads": heads,
            "num_query_groups": groups,
            "vocab_size": draw(st.sampled_from([384, 386, 391])),
        },
        "bits": {
            "dtype": draw(st.sampled_from(["bf16", "fp16", "fp32"])),
            "reward": reward,
            "head_bias": reward and draw(st.booleans()),
            "output_layer": reward and draw(st.booleans()),
            "seed": draw(st.integers(0, 2**32 - 1)),
        },
        "grid": draw(st.sampled_from([0, 1, 3, 7])),
        "topologies": [draw(topology) for _ in range(3)],
    }


def any_grid(bits, step: int) -> dict[str, tuple[int, ...]] | None:  # noqa: ANN001
    """Chunks that have nothing to do with ranks: layers in pairs, odd numbers of rows and columns."""
    if step == 0:
        return None
    return {key: tuple(max(1, size // step) for size in values.shape) for key, values in bits.items()}


def fitting(topology: tuple[int, int], layers: int) -> dict[str, int]:
    tp, pp = topology
    return {"tp": tp, "pp": pp if layers % pp == 0 else 1}


@settings(max_examples=24, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(drawn=draws())
def test_release_nemo2_hf_release(drawn):
    shape = little_shape(**drawn["shape"])
    bits = random_bits(shape, **drawn["bits"])
    dtype = drawn["bits"]["dtype"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_release(root / "start", shape, bits, dtype=dtype, grid=any_grid(bits, drawn["grid"]))
        at = [fitting(topology, shape.num_layers) for topology in drawn["topologies"]]
        before = root / "start"
        for name, to, topology in (("n", "nemo2", at[0]), ("h", "hf", at[1]), ("r", "release", at[2])):
            convert(str(before), root / name, to, Console(io.StringIO()), **topology)
            assert_same(read_bits(root / name), bits)
            reached = ModelFolder.open(root / name)
            assert (reached.shape, reached.dtype, reached.contents.format) == (shape, dtype, to)
            assert reached.tokenizer == ModelFolder.open(root / "start").tokenizer
            before = root / name
        # The chunk files are those of a folder that had this grid from the start.
        places = architecture(shape)
        grid = {key: tuple(array_header(places[key], at[2]["tp"])["chunks"]) for key in bits}
        write_release(root / "same", shape, bits, dtype=dtype, grid=grid)
        chunks = {name for name in files_of(root / "same") if name.startswith("model_weights/") and name[-1].isdigit()}
        ours, theirs = files_of(root / "r"), files_of(root / "same")
        assert chunks and all(ours[name] == theirs[name] for name in chunks)
        assert {name for name in ours if name.startswith("model_weights/") and name[-1].isdigit()} == chunks


def test_fp64_too(tmp_path):
    shape = little_shape()
    bits = random_bits(shape, dtype="fp64")
    before = write_release(tmp_path / "start", shape, bits, dtype="fp64")
    for to in ("nemo2", "hf", "release"):
        convert(str(before), tmp_path / to, to, Console(io.StringIO()), tp=2)
        before = tmp_path / to
        assert_same(read_bits(before), bits)
