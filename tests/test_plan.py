"""The plan's figures: known ones for the released model, counted ones on real ranks, and no torch."""

from __future__ import annotations

import gzip
import io

import pytest
from folders import make_folder, make_tokenizer, small_shape
from processes import cpu_seconds
from ranks import run_ranks

from nemo_sdg import plan
from nemo_sdg.config import load
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, TopologyError
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


def shown(*words: str, files: bool = False, world: int | None = None) -> str:
    stream = io.StringIO()
    plan.make(load(words[0], list(words[1:])), files=files, world=world).show(Console(stream), details=True)
    return stream.getvalue()


def test_memory_of_a_340b_rank():
    text = shown("nemotron4_340b")
    assert "96 = tp 8 x pp 12 x dp 1, bf16" in text and "341,029,195,776" in text
    (summary, *lines) = [line.split() for line in text.splitlines() if line.startswith("  train sft  ") and "GiB" in line]
    assert [line[2] for line in lines] == ["0", "1", "11"] and lines[1][3:5] == ["to", "10"]
    # 2 bytes of weight; 4 of gradient, 4 of master weight and 8 of moments
    first = rank_parameters(sizes()["nemotron4_340b"], 8, 8, first=True, last=False)
    assert f"{first:,}" in lines[0]
    assert f"{bytes_text(2 * first)}  {bytes_text(16 * first)}" in text
    stage = plan.make(load("nemotron4_340b"), files=False).fits["train sft"][0]
    assert (stage.weights, stage.gradients, stage.optimizer) == (2 * first, 4 * first, 12 * first)
    assert f"{bytes_text(stage.total)} to train" in text and " ".join(summary[-2:]) == bytes_text(stage.total)


def test_replicas_share_the_optimizer_on_gpus():
    alone = phases(plan.make(load("nemotron4_340b"), world=96, files=False))["train sft"].stages[0]
    shared = plan.make(load("nemotron4_340b"), world=384, files=False)
    assert shared.grids.train.dp == 4
    assert phases(shared)["train sft"].stages[0].training == alone.parameters * 4 + alone.parameters * 12 // 4


def phases(made: plan.Plan) -> dict:
    return {model.role: model for model in made.models}


NARROW = ["generate.topology.tp=4", "generate.topology.pp=4", "score.topology.tp=8", "score.topology.pp=2"]


def test_each_phase_has_its_own_topology():
    """15B on 16 ranks: training TP8 x DP2, generation TP4 x PP4, scoring TP8 x PP2."""
    words = [*NARROW, "topology.tp=8", "topology.pp=1"]
    made = plan.make(load("nemotron4_15b", words), world=16, files=False)
    shape, stages = sizes()["nemotron4_15b"], {role: model.stages for role, model in phases(made).items()}
    assert {role: len(found) for role, found in stages.items()} == {
        "generate": 4, "score": 2, "train sft": 1, "train rm": 1
    }  # fmt: skip
    first = rank_parameters(shape, 4, shape.num_layers // 4, first=True, last=False)
    assert stages["generate"][0].parameters == first and stages["generate"][0].training == 0
    last = rank_parameters(shape, 8, shape.num_layers // 2, first=False, last=True, reward=True)
    assert stages["score"][1].parameters == last and stages["score"][1].kv_cache == 0
    assert sum(read.num_bytes for read in phases(made)["generate"].loading.ranks) > 2 * shape.num_parameters
    text = shown("nemotron4_15b", *words, world=16)
    assert "generate  16 = tp 4 x pp 4 x dp 1, ranks 0 to 15" in text and "score     16 = tp 8 x pp 2 x dp 1" in text
    with pytest.raises(TopologyError, match="score.topology: the ranks .* 16 ranks for tp 8 x pp 3"):
        plan.make(load("nemotron4_15b", [*words, "score.topology.pp=3"]), world=16, files=False)
    wide = ["generate.topology.tp=16", "generate.topology.pp=1"]
    with pytest.raises(TopologyError, match="generate.topology: tp does not divide the model's KV groups"):
        plan.make(load("nemotron4_15b", [*words, *wide]), world=16, files=False)


@pytest.mark.parametrize("placement", ["in_turn", "together", "split"])
def test_placement_decides_what_is_in_memory_at_once(placement):
    words = ["topology.tp=8", f"models.placement={placement}", "sft.enabled=false", "reward.enabled=false"]
    made = plan.make(load("nemotron4_15b", words), world=16, files=False)
    (generate,), (score,) = (phases(made)[role].stages for role in ("generate", "score"))
    each = [generate.total, score.total]
    assert generate.held == generate.weights + generate.kv_cache and score.held == score.weights
    assert made.peak.working == (sum(each) if placement == "together" else max(each)) and made.peak.training == 0
    ranks = {role: list(model.grid.ranks) for role, model in phases(made).items()}
    half = [list(range(8)), list(range(8, 16))]
    assert list(ranks.values()) == (half if placement == "split" else [list(range(16))] * 2)
    with pytest.raises(TopologyError, match="too few to generate and score apart.*expected 16 ranks at least"):
        plan.make(load("nemotron4_15b", [*words, "models.placement=split"]), world=8, files=False)


def test_keys_and_values_are_those_of_the_engine(tmp_path):
    """What the plan says and what an engine of the same settings holds, byte for byte, also within a given budget."""
    from nemo_sdg.engine.backends.choosing import Role

    make_folder(tmp_path / "policy", small_shape(), make_tokenizer(tmp_path / "t.model"))
    for extra in ([], ["generate.kv_cache_bytes=3000000"]):
        words = [f"models.instruct={tmp_path}/policy", "generate.slots=6", "topology.tp=2", "topology.pp=2", *extra]
        config = load("tiny", [*words, "sft.enabled=false", "reward.enabled=false"])
        (said,) = {stage.kv_cache for stage in phases(plan.make(config))["generate"].stages}

        def held(mesh: Mesh) -> int:
            return Role("policy", config, config.models.instruct, given=False).open(mesh).engine.kv_bytes

        assert run_ranks(held, tp=2, pp=2) == [said] * 4
        assert not extra or 2_500_000 < said <= 3_000_000


def test_a_servers_model_takes_nothing_here():
    words = ["generate.backend=endpoint", "generate.endpoint.url=http://127.0.0.1:1/v1", "models.instruct=nowhere"]
    made = plan.make(load("tiny", words))
    assert list(phases(made)) == ["score", "train sft", "train rm"]
    text = shown("tiny", *words)
    assert "generate asks the server at http://127.0.0.1:1/v1: no model of that role is loaded here" in text
    words += ["score.backend=endpoint", "score.endpoint.url=http://127.0.0.1:1/v1", "models.reward=nowhere"]
    words += ["topology.tp=8", "topology.pp=12", "sft.enabled=false", "reward.enabled=false"]
    made = plan.make(load("tiny", words))
    assert made.ranks == 1 and made.models == [] and made.peak.working == 0
    assert "tp 1 x pp 1 x dp 1" in shown("tiny", *words)


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


def test_prompts_that_are_made_are_counted_with_what_that_takes(tmp_path):
    words = ["data.synthesis.brief=package:conf/briefs/finance.yaml", "data.synthesis.kinds={open_qa: 20}"]
    words += ["data.synthesis.topics=4", "generate.max_tokens=100"]
    made = plan.make(load("tiny", words))
    # 25 questions, so that there are enough: five lists, each entry refined. Topics: two wide ones, then below each.
    assert made.prompts == 20 and any("at most 33 questions and 3,300 tokens in answers" in note for note in made.notes)
    fewer = plan.make(load("tiny", [*words, "data.synthesis.max_tokens=30"]))
    assert any("33 questions and 990 tokens" in note for note in fewer.notes)
    (tmp_path / "brief.yaml").write_text("field: x\nunknown: 1\n")
    bad = load("tiny", [f"data.synthesis.brief={tmp_path}/brief.yaml", "data.synthesis.kinds={open_qa: 20}"])
    with pytest.raises(ConfigError, match="unknown"):
        plan.make(bad)
    assert any("is not counted: " in note for note in plan.make(bad, files=False).notes)


def test_adapters_alone_have_gradients_and_an_optimizer():
    """15B at TP 8: of linear_qkv and linear_fc1 B is cut and A a copy, of the other two the reverse."""
    made = plan.make(load("nemotron4_15b", ["sft.lora.rank=32", "reward.lora.rank=16"]), files=False)
    sft, rm = phases(made)["train sft"].stages[0], phases(made)["train rm"].stages[0]
    hidden, qkv, query, ffn = 6144, 8192, 6144, 24576
    layer = hidden + qkv // 8 + query // 8 + hidden + hidden + ffn // 8 + ffn // 8 + hidden
    assert sft.training == 32 * layer * 32 * 16
    assert rm.training == (32 * layer * 16 + 9 * hidden // 8) * 16
    full = phases(plan.make(load("nemotron4_15b"), files=False))["train sft"].stages[0]
    assert sft.weights == full.weights + 2 * 32 * layer * 32


def test_a_checkpoint_of_another_dtype_is_held_beside_the_weights_while_it_is_read():
    """The tiny ones are in bf16, as the released ones are."""
    loading = {}
    for dtype in ("bf16", "fp32"):
        models = plan.make(load("tiny", [f"models.dtype={dtype}"])).models
        loading[dtype] = max(stage.loading for model in models for stage in model.stages)
    assert loading["fp32"] > loading["bf16"] == 0


def test_a_pair_has_the_tokens_of_both_responses():
    words = ["preference.enabled=true", "preference.steps=3", "preference.global_batch_size=8", "preference.max_length=256"]
    made = plan.make(load("tiny", [*words, "expect.row_tokens=null"]))
    tokens = {part.name: part.tokens for part in made.parts}
    assert tokens["train policy"] == 3 * 8 * 256  # two halves of what each may have
