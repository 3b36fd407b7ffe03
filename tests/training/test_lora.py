"""Low-rank adapters: what they add, at every topology the same, and what becomes of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Lora, Models, Training
from nemo_sdg.errors import ConfigError
from training import worlds

SETTINGS = Training(
    steps=5, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=5e-3, warmup_steps=1, clip_grad=0.5,
    lora=Lora(rank=3, alpha=6.0),
)  # fmt: skip


def train(mesh: Any, world: Path, out: Path, task: str = "sft", settings: Training = SETTINGS, **more: Any) -> list[float]:
    from nemo_sdg.training.fit import fit

    rows, models = world / f"{task}.jsonl", more.pop("models", Models(dtype="fp64"))
    start = more.pop("start", world / "base")
    return fit(task, settings, models=models, start=start, rows=rows, out=out, mesh=mesh, seed=5, **more)["losses"]


def weights(mesh: Any, folder: Path) -> dict[str, np.ndarray]:
    from nemo_sdg.engine.load import load_model

    model, _ = load_model(folder, mesh, dtype="fp64", reward=ModelFolder.open(folder).is_reward)
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """Losses and merged weights of both tasks on one rank."""
    root = tmp_path_factory.mktemp("lora")
    return {
        task: (run_ranks(train, world, root / task, task)[0], run_ranks(weights, root / task)[0], root / task)
        for task in ("sft", "reward")
    }


GRIDS = {
    **{name: dict(tp=tp, pp=pp, dp=dp) for name, (tp, pp, dp) in TOPOLOGIES.items() if name != "one"},
    "sequence parallel": dict(tp=2, sequence_parallel=True),
}


@pytest.mark.parametrize(
    "task, name",
    [("sft", "tp2pp2"), ("sft", "dp2"), ("sft", "sequence parallel"), ("reward", "tp2pp2"), ("reward", "sequence parallel")],
)
def test_losses_and_merged_weights_are_those_of_one_rank(world, alone, tmp_path, task, name):
    grid = GRIDS[name]
    expected, merged, _ = alone[task]
    more = {"sequence_parallel": grid.get("sequence_parallel", False)}
    for found in run_ranks(lambda mesh: train(mesh, world, tmp_path / "out", task, **more), **grid):
        assert found == pytest.approx(expected, abs=1e-9)
    result = run_ranks(weights, tmp_path / "out")[0]
    assert result.keys() == merged.keys()
    for key in result:
        np.testing.assert_allclose(result[key], merged[key], rtol=0, atol=1e-9, err_msg=key)


def _live(mesh: Any, world: Path, pp: int = 1) -> Any:
    """The start model with fresh adapters, tokens, and what it made of them before."""
    import torch

    from nemo_sdg.engine.load import load_model
    from nemo_sdg.models import lora

    model, _ = load_model(world / "base", mesh, dtype="fp64")
    tokens_BS = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(1))
    inputs = (tokens_BS, torch.arange(24).expand(2, 24), None)
    before = model(*inputs)
    adapters = lora.attach(model, worlds.SHAPE, SETTINGS.lora, 5, mesh)
    return model, inputs, before, adapters


def _known_answers(mesh: Any, world: Path) -> None:
    import torch

    from nemo_sdg.models import lora

    model, inputs, before, adapters = _live(mesh, world)
    assert torch.equal(model(*inputs), before), "a fresh adapter changes something"
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("adapters.")}
    assert len(trained) == 4 * 4 * 2
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            if name.endswith("b_OR"):
                draw = torch.Generator().manual_seed(len(name))
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=draw))
    beside = model(*inputs)
    # By hand, the first linear of the first layer: W x + (alpha / r) B A x.
    layer, adapter = model.decoder.layers[0], adapters.layers["0"]["linear_qkv"]
    x_SBI = torch.randn(7, 2, 32, dtype=torch.float64)
    by_hand = x_SBI @ (layer.self_attention.linear_qkv.weight + 6.0 / 3 * adapter.b_OR @ adapter.a_RI).T
    torch.testing.assert_close(layer.self_attention.linear_qkv(x_SBI)[0], by_hand, rtol=0, atol=1e-12)
    lora.merge(model)
    assert (beside - before).abs().max() > 0.1
    torch.testing.assert_close(model(*inputs), beside, rtol=0, atol=1e-10)
    with torch.no_grad():  # the packed decoding path, too
        torch.testing.assert_close(model(*inputs), beside, rtol=0, atol=1e-10)


def test_a_fresh_adapter_is_the_base_and_a_merged_one_is_base_and_adapter(world):
    run_ranks(_known_answers, world)


def _drawn(mesh: Any, world: Path) -> dict[str, Any]:
    _, _, _, adapters = _live(mesh, world) if mesh.pp == 1 else (None, None, None, _attached(mesh, world))
    return {name: tensor.detach().numpy() for name, tensor in adapters.named_parameters() if name.endswith("a_RI")}


def _attached(mesh: Any, world: Path) -> Any:
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.models import lora

    return lora.attach(load_model(world / "base", mesh, dtype="fp64")[0], worlds.SHAPE, SETTINGS.lora, 5, mesh)


def test_what_is_drawn_does_not_depend_on_the_stages(world):
    whole = run_ranks(_drawn, world)[0]
    first, second = run_ranks(_drawn, world, pp=2)
    assert {*first, *second} == {*whole}
    for name, tensor in {**first, **second}.items():
        np.testing.assert_array_equal(tensor, whole[name])
    # Xavier's normal distribution: variance 2 / (in + out) of the matrix A.
    drawn = np.concatenate([tensor.ravel() for name, tensor in whole.items() if "linear_fc2" in name])
    assert drawn.std() == pytest.approx((2 / (64 + 3)) ** 0.5, rel=0.1)


def _killed_then_resumed(mesh: Any, world: Path, out: Path) -> tuple[list[float], list[str]]:
    from nemo_sdg.checkpoints.files import Files
    from nemo_sdg.checkpoints.nemo2.index import read_index
    from nemo_sdg.training.strategy import FitStrategy

    class Killed(Exception):
        pass

    settings, step = replace(SETTINGS, restart_every=2), FitStrategy.training_step

    def killing(self, *args, **kwargs):
        if self.trainer.global_step == 3:
            raise Killed
        return step(self, *args, **kwargs)

    FitStrategy.training_step = killing
    with pytest.raises(Killed):
        train(mesh, world, out, settings=settings)
    FitStrategy.training_step = step
    import re

    point = Files(out.with_name(f".{out.name}.fit") / "step-00000002")
    wanted, others = read_index(point, "weights/", re.compile(r"module\..*"))
    return train(mesh, world, out, settings=settings), sorted([*wanted, *others])


@pytest.mark.parametrize("name", ["one", "tp2pp2"])
def test_a_restart_point_holds_the_adapters_alone_and_the_fit_goes_on_from_it(world, alone, tmp_path, name):
    tp, pp, dp = TOPOLOGIES[name]
    found, names = run_ranks(_killed_then_resumed, world, tmp_path / "out", tp=tp, pp=pp, dp=dp)[0]
    assert found == pytest.approx(alone["sft"][0], abs=0 if name == "one" else 1e-9)
    weights_of = [name for name in names if name.startswith("module.")]
    assert len(weights_of) == 4 * 4 * 2 and all(name.startswith("module.adapters.layers.") for name in weights_of)
    moments = [name for name in names if "exp_avg" in name]
    assert moments and all("adapters." in name for name in moments), names


def test_bf16_and_packed_rows(world, alone, tmp_path):
    packed = replace(SETTINGS, packed_sequence_size=512)
    assert run_ranks(train, world, tmp_path / "packed", "sft", packed)[0] == pytest.approx(alone["sft"][0], abs=1e-9)
    bf16 = run_ranks(lambda mesh: train(mesh, world, tmp_path / "bf16", models=Models(dtype="bf16")))[0]
    assert bf16 == pytest.approx(alone["sft"][0], abs=0.05)


def _with_a_bias(mesh: Any, world: Path, out: Path) -> str:
    worlds.write_start(mesh, out / "start", world / "tokenizer.model", reward=True, head_bias=True)
    with pytest.raises(ConfigError) as caught:
        train(mesh, world, out / "trained", "reward", APART, start=out / "start")
    return str(caught.value)


def test_what_cannot_be_kept_apart_is_refused(world, tmp_path):
    told = run_ranks(_with_a_bias, world, tmp_path)[0]
    assert told.startswith("reward.lora.apart: adapters that are kept apart cannot carry the bias of a reward head")
    assert os.listdir(tmp_path) == ["start"]


def _beside_an_old_stage(mesh: Any, world: Path, out: Path) -> None:
    def left(step: int, loss: float) -> None:
        parts = out.with_name(f".{out.name}.fit") / "adapter-parts"
        parts.mkdir(exist_ok=True)
        (parts / "00007.safetensors").write_bytes(b"torn")  # of a fit with more stages that was killed as it wrote

    train(mesh, world, out, settings=APART, on_step=left)


def test_adapters_of_an_attempt_that_was_killed_are_not_taken(world, alone, tmp_path):
    run_ranks(_beside_an_old_stage, world, tmp_path / "out")
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


APART = replace(SETTINGS, lora=replace(SETTINGS.lora, apart=True))


@pytest.mark.parametrize("task, name", [("sft", "tp2pp2"), ("reward", "one")])
def test_peft_and_convert_open_what_is_kept_apart(world, alone, tmp_path, task, name):
    import torch
    import transformers
    from peft import PeftModel

    from nemo_sdg.checkpoints.convert import convert
    from nemo_sdg.checkpoints.verify import verify
    from nemo_sdg.console import Console

    tp, pp, dp = TOPOLOGIES[name]
    run_ranks(train, world, tmp_path / "out", task, APART, tp=tp, pp=pp, dp=dp)
    console = Console(open(tmp_path / "log", "w"))
    assert verify(str(tmp_path / "out"), console) == []
    convert(str(tmp_path / "out"), tmp_path / "merged", "hf", console)
    adapter = str(tmp_path / "out" / "adapter")
    convert(str(world / "base"), tmp_path / "by-us", "hf", console, adapter=adapter)
    convert(str(world / "base"), tmp_path / "base", "hf", console)
    kind = transformers.AutoModelForSequenceClassification if task == "reward" else transformers.AutoModelForCausalLM
    labels = {"num_labels": 9} if task == "reward" else {}
    base = kind.from_pretrained(tmp_path / "base", torch_dtype=torch.float64, **labels)
    base.config.pad_token_id = 0
    theirs = PeftModel.from_pretrained(base, adapter).eval()
    tokens = torch.randint(7, 50, (2, 24), generator=torch.Generator().manual_seed(1))
    merged, by_us = (kind.from_pretrained(tmp_path / x, torch_dtype=torch.float64).eval() for x in ("merged", "by-us"))
    with torch.no_grad():
        merged.config.pad_token_id = 0
        assert (merged(tokens).logits - theirs(tokens).logits).abs().max() < 1e-9
    for (key, ours), whole in zip(by_us.state_dict().items(), merged.state_dict().values(), strict=True):
        # `convert` keeps the bf16 of the base folder: eight bits, rounded once.
        torch.testing.assert_close(ours, whole, rtol=2**-8, atol=1e-30, msg=key)
