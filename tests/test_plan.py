"""The plan's figures: known ones for the released model, counted ones on real ranks, and no torch."""

from __future__ import annotations

import gzip
import io

import pytest
from folders import small_shape
from processes import cpu_seconds
from ranks import run_ranks

from nemo_sdg import plan
from nemo_sdg.config import load
from nemo_sdg.console import Console
from nemo_sdg.errors import TopologyError
from nemo_sdg.models import nemotron
from nemo_sdg.models.shapes import sizes
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.plan.counting import count_rows
from nemo_sdg.plan.memory import rank_parameters
from nemo_sdg.plan.units import bytes_text


def test_340b_known_answers():
    shape = sizes()["nemotron4_340b"]
    assert (
        rank_parameters(shape, 1, 96, first=True, last=True) == 341_029_195_776
    )  # llama.cpp prints 341.03 B (issue 7966)
    layer = 3_454_083_072  # qkv, proj, two MLP matrices, two norms with weight and bias
    norms, embedding, hidden = 4 * 18432, 256_000 * 18432, 18432
    middle = 8 * ((layer - norms) // 8 + norms)
    assert rank_parameters(shape, 8, 8, first=False, last=False) == middle
    assert rank_parameters(shape, 8, 8, first=True, last=False) == middle + embedding // 8
    assert rank_parameters(shape, 8, 8, first=False, last=True) == middle + embedding // 8 + 2 * hidden
    head = 9 * hidden // 8
    assert rank_parameters(shape, 8, 8, first=False, last=True, reward=True) == middle + head + 2 * hidden


@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("tp, pp", [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_counts_are_those_of_the_model_that_is_built(tp, pp, reward):
    def count(mesh: Mesh) -> tuple[int, int]:
        config = nemotron.transformer_config(small_shape(), tp=mesh.tp, pp=mesh.pp)
        model = nemotron.build(
            config, small_shape(), pre_process=mesh.first_stage, post_process=mesh.last_stage, reward=reward
        )
        return mesh.pp_rank, sum(parameter.numel() for parameter in model.parameters())

    for stage, counted in run_ranks(count, tp=tp, pp=pp):
        ends = {"first": stage == 0, "last": stage == pp - 1}
        assert counted == rank_parameters(small_shape(), tp, 4 // pp, **ends, reward=reward)


def shown(*words: str, files: bool = False) -> str:
    stream = io.StringIO()
    plan.make(load(words[0], list(words[1:])), files=files).show(Console(stream))
    return stream.getvalue()


def test_memory_of_a_340b_rank():
    text = shown("nemotron4_340b")
    assert "96 = tp 8 x pp 12 x dp 1, bf16" in text and "341,029,195,776" in text
    lines = [line.split() for line in text.splitlines() if line.startswith(("  0 ", "  1 to 10 ", "  11 "))]
    assert len(lines) == 3
    # 2 bytes of weight; 4 of gradient, 4 of master weight and 8 of moments
    first = rank_parameters(sizes()["nemotron4_340b"], 8, 8, first=True, last=False)
    assert f"{first:,}" in text and bytes_text(2 * first) in text and bytes_text(16 * first) in text


def test_replicas_share_the_optimizer_on_gpus():
    alone = plan.make(load("nemotron4_340b"), world=96, files=False).stages[0]
    shared = plan.make(load("nemotron4_340b"), world=384, files=False)
    assert shared.dp == 4
    assert shared.stages[0].training == alone.parameters * 4 + alone.parameters * 12 // 4


def test_what_does_not_divide_is_refused():
    with pytest.raises(TopologyError, match="tp does not divide the model's KV groups"):
        plan.make(load("nemotron4_340b", ["topology.tp=16"]), files=False)
    with pytest.raises(TopologyError, match="pp does not divide the model's layers"):
        plan.make(load("nemotron4_340b", ["topology.pp=10"]), files=False)
    with pytest.raises(TopologyError, match="97 ranks for tp 8 x pp 12, expected a multiple of 96"):
        plan.make(load("nemotron4_340b"), world=97, files=False)
    with pytest.raises(TopologyError, match="a multiple of"):
        plan.make(load("nemotron4_340b"), world=288, files=False)


def test_rows_are_counted_without_blank_ones(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "1"}\n\n  \n{"prompt": "2"}')
    assert count_rows(tmp_path / "a.jsonl") == (2, True)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "1"}\n' * 7))
    assert count_rows(tmp_path / "a.jsonl.gz") == (7, True)


def test_a_large_file_is_estimated(tmp_path, monkeypatch):
    from nemo_sdg.plan import counting

    monkeypatch.setattr(counting, "_COUNT_AT_MOST", 1 << 10)
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "0123456789"}\n' * 400_000)
    rows, exact = count_rows(tmp_path / "a.jsonl")
    assert not exact and rows == pytest.approx(400_000, rel=0.05)


def test_sizes_are_told_in_binary_units():
    assert [bytes_text(n) for n in (0, 1023, 1024, 1536 * 1024, 3 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 TiB"
    ]  # fmt: skip


@pytest.mark.parametrize("pp", [12, 24])
def test_a_340b_plan_takes_seconds_and_no_torch(pp):
    code = (
        "import sys\n"
        "from nemo_sdg.cli import main\n"
        f"assert main(['plan', 'nemotron4_340b', 'topology.pp={pp}']) == 0\n"
        "assert not {'torch', 'nemo', 'megatron'} & set(sys.modules)\n"
    )
    seconds = min(cpu_seconds(code)[0] for _ in range(3))
    print(f"nemo-sdg plan, TP8 x PP{pp}: {seconds:.3f} s of CPU")
    assert seconds < 3
