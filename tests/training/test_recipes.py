"""NeMo 2 recipes: `llm.finetune` itself runs them, with NeMo's trainer, strategy, logger and checkpoints."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Lora, Models
from nemo_sdg.errors import UserError
from training.test_stock_nemo import on_stock_ranks

FIELDS = dict(
    steps=5, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=1, clip_grad=0.5
)
LORA = {"rank": 3, "alpha": 6.0}
ROWS = {"sft": "sft.jsonl", "preference": "pairs.jsonl", "reward": "reward.jsonl"}


def recipe_of(world: Path, task: str, out: Path, tp: int, pp: int, settings: dict, **more: Any) -> Any:
    """The recipe, with what it needs on a CPU."""
    import fiddle as fdl
    from lightning.fabric.plugins.environments import TorchElasticEnvironment

    from nemo_sdg.training.recipes import finetune

    recipe = finetune(
        task, str(world / "base"), str(world / ROWS[task]), settings=settings, tp=tp, pp=pp, gpus_per_node=tp * pp,
        dtype="fp64", seed=5, dir=str(out), save_every=2, **more,
    )  # fmt: skip
    strategy, trainer = recipe.trainer.strategy, recipe.trainer
    strategy.replace_progress_bar = strategy.ckpt_parallel_save = strategy.ckpt_parallel_load = False
    trainer.accelerator, trainer.enable_progress_bar = "cpu", False
    trainer.plugins = [trainer.plugins, TorchElasticEnvironment()]
    recipe.log.use_datetime_version = False
    return fdl.build(recipe)


def finetuned(world: Path, task: str, tp: int, pp: int, settings: dict, more: dict, out: Path) -> list[float]:
    """The losses of `llm.finetune` on this rank."""
    import lightning.pytorch as pl
    from nemo.lightning import nemo_logger

    from nemo_sdg.training import cpu

    # NeMo's logger asks whether a callback is of this package, which is not installed here.
    nemo_logger.lcp = types.SimpleNamespace(LocalCheckpointCallback=type("NotInstalled", (), {}))
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))

    with cpu.scope():
        job = recipe_of(world, task, out, tp, pp, settings, **more)
        job.keywords["trainer"].callbacks.append(Losses())
        job()
    return losses


def fitted(mesh: Any, world: Path, task: str, settings: dict, out: Path) -> list[float]:
    from nemo_sdg.training.finetuned import GROUPS
    from nemo_sdg.training.fit import fit

    fields = {**settings, "lora": Lora(**settings.get("lora", {}))}
    made, start, rows = GROUPS[task](**fields), world / "base", world / ROWS[task]
    return fit(task, made, models=Models(dtype="fp64"), start=start, rows=rows, out=out, mesh=mesh, seed=5)["losses"]


def weights(mesh: Any, folder: Path) -> dict[str, np.ndarray]:
    from nemo_sdg.engine.load import load_model

    model, _ = load_model(folder, mesh, dtype="fp64", reward=ModelFolder.open(folder).is_reward)
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


CASES = {
    "sft, one": ("sft", "one", FIELDS, {}),
    "sft, tp2pp2": ("sft", "tp2pp2", FIELDS, {}),
    "packed, under sequence parallelism, recomputed": (
        "sft", "tp2", {**FIELDS, "packed_sequence_size": 512}, {"sequence_parallel": True, "recompute": True},
    ),
    "packed, two virtual stages": ("sft", "pp2", {**FIELDS, "packed_sequence_size": 512}, {"virtual_stages": 2}),
    "two virtual stages, three micro batches": ("sft", "pp2", {**FIELDS, "global_batch_size": 6}, {"virtual_stages": 2}),
    "preference, two virtual stages": (
        "preference", "pp2", {**FIELDS, "beta": 0.1, "sft_weight": 1e-3}, {"virtual_stages": 2},
    ),
    "reward, tp2pp2": ("reward", "tp2pp2", FIELDS, {}),
    "adapters, recomputed": ("sft", "tp2", {**FIELDS, "lora": LORA}, {"recompute": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_llm_finetune_gives_the_losses_and_weights_of_our_own_fit(world, tmp_path, name):
    task, topology, settings, more = CASES[name]
    tp, pp, _ = TOPOLOGIES[topology]
    expected = run_ranks(fitted, world, task, settings, tmp_path / "fit")[0]
    ranks = on_stock_ranks(finetuned, world, task, tp, pp, settings, more, tmp_path / "nemo", count=tp * pp)
    # In fp32, and NeMo does not tell it to every rank of the earlier stages; what follows says that nothing else differs.
    assert ranks[-1] == pytest.approx(expected, rel=1e-7)
    saved = sorted(path.parent for path in (tmp_path / "nemo").rglob("weights"))
    assert len(saved) == 3, saved  # steps 2, 4 and the last one
    trained, ours = run_ranks(weights, saved[-1])[0], run_ranks(weights, tmp_path / "fit")[0]
    assert trained.keys() == ours.keys()
    for key in ours:
        np.testing.assert_allclose(trained[key], ours[key], rtol=0, atol=1e-9, err_msg=key)
    assert list((tmp_path / "nemo").rglob("events.out.tfevents.*"))


def test_settings_that_are_not_so_or_not_heeded_are_refused():
    from nemo_sdg.errors import ConfigError
    from nemo_sdg.training.recipes import finetune

    def refused(task: str, **settings: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            finetune(task, "start", "rows", settings={**FIELDS, **settings})
        return str(caught.value)

    assert refused("preference", objective="DPO").startswith("preference.objective: the value is not allowed, found DPO")
    assert refused("sft", validate_every=10).startswith("sft.validate_every: NeMo's trainer does not heed this setting, found 10")
    assert refused("sft", lora={"rank": 2, "apart": True}).startswith("sft.lora.apart: NeMo's trainer does not heed")


SIZES = ("minitron_4b", "nemotron4_15b", "nemotron4_340b")


@pytest.mark.parametrize(
    "name",
    [f"{size}_{task}" for size in SIZES for task in ("sft", "sft_lora", "preference", "reward")],
)
def test_each_recipe_builds_and_states_its_memory(world, name):
    """By its name in NeMo's command line; what it builds are NeMo's objects, and `plan` gives the memory that it tells."""
    import fiddle as fdl
    from nemo.collections import llm

    from nemo_sdg import plan
    from nemo_sdg.config import load
    from nemo_sdg.parallel.topology import check_global_batch
    from nemo_sdg.plan.units import bytes_text
    from nemo_sdg.training import factories
    from nemo_sdg.training.finetuned import settings_of

    registered = factories.recipes()[name]
    task = next(task for task in ROWS if f"_{task}" in name)
    recipe = registered(str(world / "base"), str(world / ROWS[task]), wandb_project="mine")
    strategy = recipe.trainer.strategy
    grid = strategy.tensor_model_parallel_size, strategy.pipeline_model_parallel_size
    size = next(size for size in SIZES if name.startswith(size))
    world_size = recipe.trainer.num_nodes * recipe.trainer.devices
    settings, replicas = settings_of(task, recipe.data.settings), world_size // (grid[0] * grid[1])
    virtual_stages = strategy.virtual_pipeline_model_parallel_size or 1
    turn = strategy.microbatch_group_size_per_vp_stage if virtual_stages > 1 else 1
    check_global_batch(settings, replicas, task, turn)
    assert turn in range(grid[1], 17) or virtual_stages == 1
    words = [f"topology.tp={grid[0]}", f"topology.pp={grid[1]}", "preference.start_from=base"]
    words += [f"{each}.enabled={each == task}" for each in ROWS]
    words += ["topology.sequence_parallel=false"] if grid[0] == 1 else []
    words += [f"sft.lora.rank={recipe.model.settings['lora']['rank']}"] if name.endswith("lora") else []
    models = plan.make(load(size, words), world=world_size, files=False).models
    peak = max(stage.held for model in models if model.role.startswith("train") for stage in model.stages)
    assert f": {bytes_text(peak)}." in registered.__doc__, bytes_text(peak)
    recipe.trainer.accelerator, recipe.trainer.devices, recipe.trainer.num_nodes = "cpu", 1, 1
    built = fdl.build(recipe)
    assert built.func is llm.finetune
    model, data = built.keywords["model"], built.keywords["data"]
    assert model.config.reward == (task == "reward")
    assert data.settings == model.settings and data.settings.learning_rate == model.settings.learning_rate
    optim = built.keywords["optim"].config
    assert (optim.lr, optim.adam_beta2, optim.bf16) == (model.settings.learning_rate, 0.98, True)
    assert optim.use_distributed_optimizer == (world_size > grid[0] * grid[1])
    assert built.keywords["log"].wandb is not None and built.keywords["log"].tensorboard is not None


def test_nemo_finds_them_by_name(world):
    from nemo.collections import llm

    from nemo_sdg.training import factories

    from nemo_run.cli.api import resolve_factory

    for name, recipe in factories.recipes().items():
        assert resolve_factory(llm.finetune, name).wrapped.__qualname__ == recipe.__qualname__
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"nemo_run.cli"]\nnemo_sdg = "nemo_sdg.training.factories"' in pyproject


def _described(world: Path, out: Path) -> list[Any]:
    outputs = {"helpfulness": 4, "clinical_safety": 0}
    finetuned(world, "reward", 1, 1, {**FIELDS, "steps": 1, "outputs": outputs}, {}, out)
    return [ModelFolder.open(path.parent).contents.outputs for path in out.rglob("weights")]


def test_a_reward_model_has_its_names(world, tmp_path):
    assert on_stock_ranks(_described, world, tmp_path / "nemo", count=1)[0] == [{"clinical_safety": 0, "helpfulness": 4}]


def _refused(world: Path, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        finetuned(world, "sft", 1, 2, {**FIELDS, "global_batch_size": 2}, {"virtual_stages": 2}, out)
    return str(caught.value)


def test_one_micro_batch_for_two_virtual_stages_is_refused(world, tmp_path):
    for message in on_stock_ranks(_refused, world, tmp_path / "nemo", count=2):
        assert message.startswith("sft.global_batch_size: the global batch cannot be cut into whole micro batches")
        assert "expected a multiple of 4" in message
