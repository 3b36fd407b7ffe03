"""Disk, time and placements of a plan: known answers of the formulas, and what bad input is told."""

from __future__ import annotations

import dataclasses
import io
import json
import types

import numpy as np
import pytest

from nemo_sdg import plan
from nemo_sdg.config import load
from nemo_sdg.config.hardware import RULES
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, TopologyError
from nemo_sdg.models.shapes import sizes
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.plan.disk import model_bytes, restart_bytes
from nemo_sdg.plan.machine import RATES, Machine, machine_of, presets
from nemo_sdg.plan.memory import StagePlan
from nemo_sdg.plan.timing import Asked, Laid, decode_s, generate_s, score_s, step_s
from nemo_sdg.training.batches import layout

LARGE = ["data.prompts_per_round=20000", "expect.prompt_tokens=300"]


def made(*words: str, recipe: str = "nemotron4_340b") -> plan.Plan:
    return plan.make(load(recipe, [*LARGE, *words]), files=False)


def shown(found: plan.Plan, details: bool = True) -> str:
    stream = io.StringIO()
    found.show(Console(stream), details)
    return stream.getvalue()


def machine(**numbers: float) -> Machine:
    """One without overheads: a known answer is then arithmetic by hand."""
    plain = {key: 0.0 for key in RATES} | {key: 1.0 for key in RATES if key.endswith(("efficiency", "passes"))}
    usual = {"flops": 1e12, "bandwidth_bytes_s": 1e9, "link_bytes_s": 1e9, "network_bytes_s": 1e9, "disk_bytes_s": 1e9, "gpus_per_node": 8}
    return Machine("H200", {**plain, **usual, **numbers}, {})


SHAPE = dataclasses.replace(
    sizes()["tiny"], num_layers=4, hidden_size=100, ffn_hidden_size=400, num_attention_heads=10, num_query_groups=2,
    kv_channels=10, vocab_size=1000,
)  # fmt: skip
LAYER = 100 * (100 + 2 * 20) + 100 * 100 + 2 * 100 * 400
"""Weights of one layer's matrices."""


def laid(grid: Grid = Grid(), reward: bool = False, weights: int = 0, **numbers: float) -> Laid:
    stages = [StagePlan(stage, 0, weights, 0, 0, (0, 0, 0)) for stage in range(grid.pp)]
    return Laid(SHAPE, reward, grid, "fp32", machine(**numbers), stages)


def test_a_decode_step_is_the_longer_of_bytes_and_operations():
    few = decode_s(laid(weights=4_000_000), 1, 0)
    assert few == pytest.approx(4_000_000 / 1e9 + 8 * 1000 / 1e9)  # the weights, and the logits in fp64 once
    flops = 8 * (4 * (2 * LAYER + 4 * 100 * 50) + 2 * 100 * 1000)
    keys = 8 * 4 * 2 * 2 * 10 * 50 * 4
    many = decode_s(laid(weights=4_000, flops=1e6), 8, 50)
    assert many == pytest.approx(flops / 1e6 + keys / 1e9 + 8 * 8 * 1000 / 1e9)
    # On two tensor-parallel ranks half of each, and a ring of 2 x (1/2) x 8 rows of 100 numbers, twice a layer.
    halves = decode_s(laid(Grid(tp=2), weights=4_000, flops=1e6), 8, 50)
    assert halves == pytest.approx(many / 2 + 4 * 2 * (8 * 100 * 4) / 1e9)
    assert decode_s(laid(step_s=1.0, decode_layer_s=0.1, row_s=0.01), 10, 0) == pytest.approx(1.5, abs=1e-3)


def test_lanes_keep_all_stages_at_work():
    """At two stages a lane holds half of the slots and each stage half of the layers: the same tokens in the same time."""
    asked = Asked(64, 1, 64, 100, 100)
    one, two = (generate_s(laid(Grid(pp=pp), decode_layer_s=1.0), asked, 64, 4096) for pp in (1, 2))
    assert one == pytest.approx(99 * 4, rel=3e-3) and two == pytest.approx(one, rel=3e-3)
    assert generate_s(laid(Grid(dp=2), decode_layer_s=1.0), asked, 32, 4096) == pytest.approx(one, rel=1e-3)
    twice = generate_s(laid(decode_layer_s=1.0), dataclasses.replace(asked, prompts=65), 64, 4096)
    assert twice == pytest.approx(2 * one, rel=1e-3), "the last row runs alone, as long as the others"
    uneven = generate_s(laid(decode_layer_s=1.0), dataclasses.replace(asked, response_tokens=50), 64, 4096)
    assert uneven == pytest.approx((50 + 50) * 49 / 50 * 4, rel=3e-3)


def test_a_shared_prompt_is_scored_once():
    def flops_s(samples: int, prompt: float) -> float:
        return score_s(laid(reward=True, flops=1e9), Asked(1, samples, prompt, 10, 10), 1 << 20)

    each = 4 * (2 * LAYER + 4 * 100 * 55)
    assert flops_s(1, 100) == pytest.approx(110 * each / 1e9)
    assert flops_s(4, 100) == pytest.approx(140 * each / 1e9)
    short = 4 * (2 * LAYER + 4 * 100 * 10)
    assert flops_s(4, 10) == pytest.approx(80 * short / 1e9), "a beginning of ten tokens is not shared"


def test_a_training_step_is_six_operations_a_weight_and_token_with_its_bubble():
    flops = 3 * 2 * 50 * (4 * (2 * LAYER + 4 * 100 * 25) + 2 * 100 * 1000)
    once = dict(rows=2, width=50, pieces=0, micro_batches=1, chunks=1)
    assert step_s(laid(flops=1e9), **once) == pytest.approx(flops / 1e9)
    # 6 N tokens without attention: the model's matrices
    assert flops == pytest.approx(6 * (4 * LAYER + 100 * 1000) * 100 + 3 * 100 * 4 * 4 * 100 * 25)
    four = step_s(laid(Grid(pp=2), train_layer_s=1.0), **{**once, "micro_batches": 4})
    assert four == pytest.approx(4 * 2 * (1 + 1 / 4), rel=1e-3)
    assert step_s(laid(Grid(pp=2), train_layer_s=1.0), **{**once, "micro_batches": 4, "chunks": 2}) == pytest.approx(4 * 2 * 9 / 8, rel=1e-3)
    ring = step_s(laid(Grid(tp=2), flops=1e15), **once)  # two a layer forward and two backward
    assert ring == pytest.approx(2 * 4 * 2 * (2 * 50 * 100 * 4) / 1e9, rel=1e-3)
    moved = step_s(dataclasses.replace(laid(flops=1e15), stages=[StagePlan(0, 0, 1_000_000, 0, 0, (0, 0, 0), 2_000_000, 3_000_000)]), **once)
    assert moved == pytest.approx((2 + 2 + 6) * 1e6 / 1e9, rel=1e-3)
    replicas = dataclasses.replace(laid(Grid(dp=4), flops=1e15), stages=[StagePlan(0, 0, 0, 0, 0, (0, 0, 0), 2_000_000)])
    assert step_s(replicas, **once) == pytest.approx(2_000_000 / 1e9 + 2 * 3 / 4 * 2_000_000 / 1e9, rel=1e-3)


def test_a_pipeline_pads_the_rows_of_a_step_to_the_longest():
    words = ["topology.tp=1", "topology.dp=1", "sft.max_length=64", "sft.global_batch_size=64", "hardware.gpu=cpu"]
    words += ["expect.longest_row_tokens=null"]

    def steps(pp: int, *more: str) -> float:
        course = made(*words, f"topology.pp={pp}", *more, recipe="tiny").course
        free = dataclasses.replace(course, machine=machine(train_layer_s=0.0, flops=1e3))
        return free.fit_s(free.laid("train sft", free.grids.train, *free.fits["sft"]), "sft")

    assert steps(1, "expect.row_tokens=16") < 0.3 * steps(1, "expect.row_tokens=64")
    assert steps(2, "expect.row_tokens=16") == steps(2, "expect.row_tokens=64")
    packed = "sft.packed_sequence_size=64"
    assert steps(2, packed, "expect.row_tokens=16") < 0.5 * steps(2, packed, "expect.row_tokens=64")


@pytest.mark.parametrize("grid, together", [({}, 4), ({"dp": 2}, 8), ({"dp": 8}, 32), ({"pp": 2}, 32)])
def test_rows_are_padded_to_the_longest_of_those_that_stand_together(grid, together):
    """Against drawn rows, sorted in each step as the trainer does."""
    steps = 400
    drawn = np.sort(np.random.default_rng(0).exponential(20, (steps, 32)), axis=1)
    widths = drawn.reshape(steps, -1, together).max(axis=2).mean()
    words = ["reward.micro_batch_size=4", "sft.micro_batch_size=4", f"sft.steps={steps}", "sft.max_length=4096"]
    words += ["hardware.gpu=cpu", "expect.row_tokens=20", *(f"topology.{key}={value}" for key, value in {"dp": 1, **grid}.items())]

    def width(longest: object) -> float:
        course = made(*words, f"expect.longest_row_tokens={longest}", recipe="tiny").course
        return course._width(course.config.sft, 20, 256, together, course.grids.train.pp)

    everything = sum(1 / k for k in range(1, 32 * steps + 1))  # what the longest of all has, in means
    assert width(20 * everything) == pytest.approx(widths, rel=0.05)
    assert width(10) == 20, "a longest row below the mean"
    assert width("null") == (256 if "pp" in grid else 20)


def test_the_trainer_pads_together_what_the_plan_says():
    course = made("sft.micro_batch_size=4", "topology.dp=2", "hardware.gpu=cpu", recipe="tiny").course
    told: list[int] = []
    free = dataclasses.replace(course)
    object.__setattr__(free, "_width", lambda settings, mean, longest, together, pp: told.append(together) or mean)
    free.fit_s(free.laid("train sft", free.grids.train, *free.fits["sft"]), "sft")
    mesh = types.SimpleNamespace(dp=2, pp=1)
    assert told == [layout(course.config.sft, mesh, 1)["padded_together"]] == [8]


def test_what_is_done_once_is_in_the_time_once(tmp_path):
    (tmp_path / "sft.jsonl").write_text("")
    words = ["run.rounds=3", "models.instruct=null", "models.reward=null", f"data.sft={{{tmp_path}/sft.jsonl: 1}}",
             "evaluate.ablation=true", "evaluate.ablation_seeds=2", "hardware.gpu=cpu"]  # fmt: skip
    found = made(*words, recipe="tiny")
    once, each = ({part.name: part.seconds for part in parts} for parts in (found.once, found.parts))
    assert list(once) == ["train start/policy", "train start/reward", "evaluate the first models", "ablation"]
    assert once["train start/policy"] == each["train policy"] and once["evaluate the first models"] == each["evaluate"]
    assert 6 * each["train policy"] < once["ablation"] < 6 * (each["train policy"] + each["evaluate"])
    assert found.seconds == pytest.approx(found.machine.start_s + sum(once.values()) + 3 * sum(each.values()))
    given = made("hardware.gpu=cpu", *NOT_MEASURED, recipe="tiny")
    assert given.once == [] and "evaluate" not in {part.name for part in given.parts}


NOT_MEASURED = [f"evaluate.{name}=null" for name in ("exact_match", "helpsteer2", "rewardbench", "instructions", "win_rate")]


def test_a_file_that_two_measures_ask_is_asked_once(tmp_path):
    for name, rows in (("asked", 40), ("other", 40), ("pairs", 20), ("rated", 40)):
        (tmp_path / name).write_text("{}\n" * rows)

    def seconds(**files: str) -> float:
        words = [f"evaluate.{name}={tmp_path / file}" for name, file in files.items()]
        (one,) = (part for part in made("hardware.gpu=cpu", *NOT_MEASURED, *words, recipe="tiny").parts if part.name == "evaluate")
        return one.seconds

    once = seconds(exact_match="asked")
    judged = seconds(win_rate="asked") - once
    assert judged > 0 and seconds(exact_match="asked", win_rate="asked") == pytest.approx(once + judged)
    assert seconds(exact_match="asked", instructions="asked") == once < seconds(exact_match="asked", instructions="other")
    assert seconds(rewardbench="pairs") == seconds(helpsteer2="rated"), "a pair is two responses"


def test_what_the_time_leaves_out_is_always_said():
    def left_out(*words: str, recipe: str = "tiny") -> str:
        text = shown(plan.make(load(recipe, list(words)), files=False), details=False)
        (line,) = (line for line in text.splitlines() if "not in it: " in line)
        return line

    assert "generation and scoring, whose prompts are not counted, selection" in left_out(recipe="nemotron4_340b")
    assert "prompts" not in left_out() and "revision" not in left_out() and "waves" not in left_out()
    assert "revision" in left_out("revise.passes=1") and "waves after the first" in left_out("select.target=10", "budget.hours=1")


def test_a_restart_point_of_340b_is_4_8_terabytes():
    found = made("sft.restart_every=500", "sft.keep_last=2")
    assert model_bytes(found.course, "sft") == 2 * 341_029_195_776
    assert restart_bytes(found.course, "sft") == 14 * 341_029_195_776  # 4.77e12
    items = {item.name: item for item in found.disk.items}
    assert items["restart points of sft"].num_bytes == 3 * restart_bytes(found.course, "sft")
    assert items["policy/"].every and found.disk.most[1] == "restart points of sft"
    end, files = found.disk.at_the_end
    models = sum(model_bytes(found.course, task) for task in ("sft", "reward"))
    assert models < end < 1.01 * models and files == sum(i.files for i in found.disk.items if i.stays)
    assert found.disk.most[0] == end + items["restart points of sft"].num_bytes


def test_what_stays_follows_keep():
    words = ["run.rounds=3", "preference.enabled=true", "preference.iterations=2"]
    every, last = made(*words), made(*words, "keep.models=last", "keep.intermediate=false")
    policy = model_bytes(every.course, "sft")
    difference = every.disk.at_the_end[0] - last.disk.at_the_end[0]
    assert difference == 2 * policy + 2 * model_bytes(every.course, "reward") + 3 * 2 * policy
    # Besides what stays there are once more the models of a round, sft/ and preference-1/ until it is evaluated, and the
    # largest restart point.
    again = policy + model_bytes(last.course, "reward")
    assert last.disk.most[0] == last.disk.at_the_end[0] + again + 2 * policy + restart_bytes(last.course, "sft")


def test_the_first_models_stay_by_the_rule_that_clean_goes_by(tmp_path):
    (tmp_path / "sft.jsonl").write_text("")
    first = ["models.instruct=null", "models.reward=null", f"data.sft={{{tmp_path}/sft.jsonl: 1}}", "hardware.gpu=cpu"]

    def staying(*words: str) -> set[str]:
        found = made(*first, *words, recipe="tiny")
        return {item.name for item in found.disk.items if item.name.startswith("start/") and item.stays}

    assert staying() == {"start/policy/", "start/reward/"}
    assert staying("keep.models=last") == {"start/reward/"}, "it judges the win rate"
    assert staying("keep.models=last", "evaluate.win_rate=null") == set()
    assert staying("keep.models=last", "evaluate.win_rate=null", "sft.enabled=false") == {"start/policy/"}
    assert staying("keep.models=last", "evaluate.ablation=true", "sft.start_from=latest") == {"start/policy/", "start/reward/"}


def test_weights_that_validation_found_best_lie_beside_the_restart_points():
    words = ["sft.restart_every=500", "sft.keep_last=2", "data.validation_share=0.1"]
    without, best = made(*words), made(*words, "sft.validate_every=100")
    name, weights = "restart points of sft", model_bytes(best.course, "sft")
    sizes = [next(item.num_bytes for item in found.disk.items if item.name == name) for found in (without, best)]
    assert sizes[1] - sizes[0] == 4 * weights


def test_adapters_have_small_restart_points():
    found = made("sft.lora.rank=32")
    assert restart_bytes(found.course, "sft") < 0.01 * restart_bytes(found.course, "reward")


def test_rows_and_files_are_about_those_of_a_run(tmp_path):
    """The tiny recipe's round: what a finished one was seen to hold in rows, 3.3 MB in 61 files, datasets 2.5 MB in 11."""
    found = plan.make(load("tiny", ["expect.response_tokens=6", "sft.enabled=false", "reward.enabled=false"]), files=False)
    rows = {item.name: item for item in found.disk.items}
    assert 1.5e6 < rows["responses, scores, decisions"].num_bytes < 6e6
    assert 10 <= rows["responses, scores, decisions"].files <= 70


def test_what_does_not_fit_says_what_would():
    found = made("hardware.gpu=H100-80GB")
    assert not found.fits_in and not any(one.phase == "train" for one in found.placements[0])
    text = shown(found, details=False)
    assert "does not fit on H100-80GB:\n    generate, score: TP x PP x DP of" in text
    assert "train: no placement of 96 ranks does; " in text and " ranks as " in text
    more = made("hardware.gpu=H100-80GB", "hardware.nodes=48")
    fitting = [one for one in more.placements[0] if one.phase == "train"]
    assert fitting and all(one.num_bytes <= more.machine.usable_bytes for one in fitting)
    assert all(grid.size == 384 for one in fitting for grid in one.grids)
    assert [one.seconds for one in fitting] == sorted(one.seconds for one in fitting)
    wide = made("hardware.gpu=B200")
    assert wide.fits_in and "this run's" in shown(wide)
    assert len(wide.placements[0]) <= 10


def test_the_memory_of_a_placement_is_that_of_a_plan():
    found = made("hardware.gpu=B200")
    one = next(p for p in found.placements[0] if p.phase == "train")
    (grid,) = one.grids
    same = made("hardware.gpu=B200", f"topology.tp={grid.tp}", f"topology.pp={grid.pp}", f"topology.dp={grid.dp}")
    assert same.peak.training == one.num_bytes
    assert sum(p.seconds - p.loading for p in same.parts if p.name.startswith("train")) == pytest.approx(one.seconds)


@pytest.mark.parametrize("placement", ["in_turn", "together"])
def test_a_policy_and_a_reward_model_wait_in_host_memory_while_others_train(placement):
    words = ["topology.tp=8", "topology.dp=2", f"models.placement={placement}"]
    found = made("hardware.gpu=B200", *words, recipe="nemotron4_15b")
    both = [found.models[i].on(0).weights for i in (0, 1)]
    assert [found.models[i].role for i in (0, 1)] == ["generate", "score"] and found.peak.waiting == sum(both)
    other = made("hardware.gpu=B200", *words, "generate.others={x: 1}", recipe="nemotron4_15b")
    assert len(other.models) > len(found.models) and other.peak.waiting == sum(both), "one of a kind waits"
    assert made("hardware.gpu=cpu", *words, recipe="nemotron4_15b").peak.waiting == 0


def test_attention_without_a_fused_kernel_keeps_its_scores():
    """Held against what autograd saves of the kernel that a GPU falls to."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from nemo_sdg.models.attention import attend
    from nemo_sdg.plan.activations import MicroBatch, Slice, layer_bytes

    batch, sizes = MicroBatch(1, 64, False), {}
    query, key, value = (torch.randn(1, heads, 64, 10, requires_grad=True) for heads in (10, 2, 2))

    def keep(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        attend(query, key, value, None)
    more = layer_bytes(Slice(SHAPE, "fp32", math=True), batch) - layer_bytes(Slice(SHAPE, "fp32"), batch)
    assert more == sum(sizes.values()) - 4 * 64 * (100 + 2 * 20)
    found = {dtype: made("topology.tp=1", "hardware.gpu=H200", f"models.dtype={dtype}", recipe="tiny") for dtype in ("fp32", "bf16")}
    kept = {dtype: one.fits["train sft"][0].activations for dtype, one in found.items()}
    assert kept["fp32"] > 2 * kept["bf16"]


def test_split_and_together_are_among_the_placements():
    words = ["topology.tp=8", "topology.dp=2"]
    found = made("hardware.gpu=B200", *words, recipe="nemotron4_15b")
    assert {"in_turn", "together", "split"} <= {one.how for one in found.placements[0]}
    split = next(one for one in found.placements[0] if one.how == "split")
    assert sum(grid.size for grid in split.grids) == found.ranks


def test_every_number_is_a_setting_and_says_where_it_comes_from(tmp_path):
    file = tmp_path / "cal.json"
    file.write_text(json.dumps({"rates": {"flops": 1e11, "row_s": 1e-6}}))
    found = made(f"hardware.calibration={file}", "hardware.row_s=0.5", "hardware.gpu=cpu")
    assert found.machine.flops == 1e11 and found.machine.row_s == 0.5
    assert found.machine.sources["flops"] == str(file) and found.machine.sources["row_s"] == "set"
    text = shown(found)
    for key in RATES:
        assert f"hardware.{key} " in text, key
    assert {f"hardware.{key}" for key in RATES} <= set(RULES)
    slow = made("hardware.train_efficiency=0.2")
    assert slow.seconds > made().seconds


def test_every_preset_has_every_number():
    config = load("tiny")
    for name in presets():
        if name != "defaults":
            config.hardware.gpu = name
            for dtype in ("bf16", "fp32", "fp64"):
                found = machine_of(config, dtype, 8, True)
                assert set(found.numbers) == set(RATES) and found.usable_bytes > 0
            assert "source" in presets()[name]


def test_bad_machines_are_told(tmp_path):
    def refused(*words: str) -> str:
        with pytest.raises(ConfigError) as caught:
            made(*words)
        return str(caught.value)

    assert "hardware.gpu: unknown machine, found H100, expected one of H100-80GB" in refused("hardware.gpu=H100")
    assert "the nearest is H100-80GB" in refused("hardware.gpu=H100")
    assert "cannot read the calibration, found No such file" in refused("hardware.calibration=nowhere.json")
    bad = tmp_path / "bad.json"
    for text in ("", "[]", '{"rates": 3}', '{"rates": {"flops": "x"}}'):
        bad.write_text(text)
        assert "the file is no calibration" in refused(f"hardware.calibration={bad}")
    for text in ('{"rates": {"flops": -1}}', '{"rates": {"flop": 1}}', '{"rates": {"flops": NaN}}'):
        bad.write_text(text)
        assert "a rate cannot be" in refused(f"hardware.calibration={bad}")
    assert "a share" not in refused("hardware.gpu=x")
    with pytest.raises(ConfigError, match="a number above 0 and up to 1"):
        made("hardware.train_efficiency=1.5")


def test_rates_of_another_dtype_are_refused_and_a_run_goes_on_without_its_calibration(tmp_path):
    file = tmp_path / "cal.json"
    file.write_text(json.dumps({"made": {"dtype": "fp32"}, "rates": {"flops": 1e11}}))
    words = [f"hardware.calibration={file}", "hardware.gpu=cpu"]
    assert made(*words, recipe="tiny").machine.flops == 1e11
    other = [*words, "models.dtype=bf16"]
    with pytest.raises(ConfigError, match="measured in another dtype, found fp32, expected bf16"):
        made(*other, recipe="tiny")
    for gone in (other, ["hardware.calibration=nowhere.json", "hardware.gpu=cpu"]):
        found = plan.make(load("tiny", gone))
        assert found.machine.flops != 1e11 and any("time is by the usual rates: " in note for note in found.notes)


@pytest.mark.parametrize(
    "words, nearest",
    [
        (["topology.pp=7"], "set topology.pp=6 or topology.pp=8"),
        (["topology.pp=100"], "set topology.pp=96"),
        (["topology.tp=3"], "set topology.tp=2 or topology.tp=4"),
        (["topology.tp=16"], "set topology.tp=8"),
    ],
)
def test_a_topology_that_cannot_be_is_told_with_the_nearest_that_can(words, nearest):
    with pytest.raises(TopologyError) as caught:
        made(*words)
    assert nearest in str(caught.value)
