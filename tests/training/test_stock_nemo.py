"""NeMo's own `llm.finetune` on what is written here, and our reader on what that saves.

Model, strategy, trainer, optimizer, data and checkpoint callback are NeMo's; `transformer_layer_spec` is ours,
because TransformerEngine is missing.
"""

from __future__ import annotations

import json
import os
import pickle
import traceback
import types
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from checkpoints.nemo2_folders import whole, write_nemo2
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import TORCH
from nemo_sdg.parallel import device
from nemo_sdg.parallel.launch import launch
from training import worlds


@pytest.fixture(scope="session")
def written(world: Path) -> Path:
    """The start model of the world as a NeMo 2 checkpoint, and rows for NeMo's fine-tuning."""
    pairs = [("add one two", "three four"), ("red green", "green red"), ("sort six seven", "six"), ("blue", "two red")]
    (world / "rows").mkdir()
    for name in ("training", "validation", "test"):
        worlds.write_rows(world / "rows" / f"{name}.jsonl", [{"input": a, "output": b} for a, b in pairs * 2])
    return write_nemo2(world / "base", world / "written", tp=2)


def on_stock_ranks(fn: Callable[..., Any], *args: Any, count: int) -> list[Any]:
    """As `run_ranks`, but NeMo starts the process group itself."""
    device.install()
    folder = Path(args[-1])
    folder.mkdir()

    def one_rank() -> int:
        here = os.environ.setdefault("RANK", "0")
        for name, value in (
            ("LOCAL_RANK", here),
            ("WORLD_SIZE", "1"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", "0"),
        ):
            os.environ.setdefault(name, value)
        torch.set_num_threads(1)
        try:
            outcome = (True, fn(*args))
        except BaseException:
            outcome = (False, traceback.format_exc())
        (folder / f"rank-{here}").write_bytes(pickle.dumps(outcome))
        return int(not outcome[0])

    if count == 1:
        if (pid := os.fork()) == 0:
            os._exit(one_rank())
        os.waitpid(pid, 0)
    else:
        launch(one_rank, count)
    results = [pickle.loads((folder / f"rank-{rank}").read_bytes()) for rank in range(count)]
    for good, value in results:
        assert good, value
    return [value for _, value in results]


def finetune(written: Path, tp: int, pp: int, change: dict[str, Any], out: Path) -> dict[str, Any]:
    """Two steps of `llm.finetune` from a folder of ours: the losses, and the first batch of this rank."""
    import lightning.pytorch as pl
    import nemo.lightning as nl
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from nemo.collections import llm
    from nemo.collections.llm.gpt.data import core
    from nemo.lightning import io, nemo_logger

    from nemo_sdg.models import nemotron
    from nemo_sdg.training import cpu

    # NeMo's logger asks whether a callback is of this package, which is not installed here.
    nemo_logger.lcp = types.SimpleNamespace(LocalCheckpointCallback=type("NotInstalled", (), {}))
    seen: dict[str, Any] = {"losses": []}
    collate = core.GPTSFTDataset.collate_fn

    def collate_and_tell(self: Any, batch: Any) -> Any:
        made = collate(self, batch)
        seen.setdefault("batch", {key: made[key].numpy().copy() for key in ("tokens", "labels", "loss_mask")})
        return made

    core.GPTSFTDataset.collate_fn = collate_and_tell

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            seen["losses"].append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))

    with cpu.scope():
        model = io.load_context(written / "context", subpath="model")
        seen["class"] = f"{type(model).__module__}.{type(model).__name__}"
        model.config.transformer_layer_spec = nemotron.block_spec
        model.config.cross_entropy_loss_fusion = False  # it wants a compiler
        for name, value in change.items():
            setattr(model.config, name, value)
            setattr(model.__io__.config, name, value)  # what NeMo writes into the context
        fp32 = {"params_dtype": torch.float32, "pipeline_dtype": torch.float32, "grad_reduce_in_fp32": False}
        trainer = nl.Trainer(
            accelerator="cpu",
            devices=tp * pp,
            strategy=nl.MegatronStrategy(
                tensor_model_parallel_size=tp,
                pipeline_model_parallel_size=pp,
                pipeline_dtype=torch.float32,
                ddp=DistributedDataParallelConfig(use_distributed_optimizer=False),
                ckpt_async_save=False,
                ckpt_parallel_save=False,
                ckpt_parallel_load=False,
                replace_progress_bar=False,  # NeMo's calls a collective on rank 0 alone
            ),
            plugins=[nl.MegatronMixedPrecision("32", **fp32), TorchElasticEnvironment()],
            max_steps=2,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
        trainer.callbacks.append(Losses())  # past the constructor, which would write it into the context
        llm.finetune(
            model,
            llm.FineTuningDataModule(
                written.parent / "rows", seq_length=64, micro_batch_size=4, global_batch_size=4, num_workers=0,
                pin_memory=False, dataset_kwargs={"sanity_check_dist_workers": False, "pad_to_max_length": True},
            ),
            trainer,
            log=nl.NeMoLogger(
                log_dir=str(out), use_datetime_version=False, tensorboard=None,
                ckpt=nl.ModelCheckpoint(
                    monitor=None, save_last=False, save_top_k=-1, every_n_train_steps=2, filename="end",
                    save_optim_on_train_end=True,
                ),
            ),
            resume=nl.AutoResume(restore_config=nl.RestoreConfig(path=str(written))),
            optim=nl.MegatronOptimizerModule(
                OptimizerConfig(optimizer="adam", lr=1e-3, use_distributed_optimizer=False, params_dtype=torch.float32)
            ),
            tokenizer="model",
        )  # fmt: skip
    return seen


def _loss(mesh: Any, written: Path, batch: dict[str, np.ndarray]) -> float:
    """The loss of a batch by our own model from the same weights."""
    from nemo_sdg.engine.load import load_model

    model, _ = load_model(written, mesh, dtype="fp64")
    tokens_BS, labels_BS = torch.from_numpy(batch["tokens"]), torch.from_numpy(batch["labels"])
    mask_BS = torch.from_numpy(batch["loss_mask"]).double()
    positions_BS = torch.arange(tokens_BS.size(1)).expand_as(tokens_BS)
    with torch.no_grad():
        logits_BSV = model(tokens_BS, positions_BS, None)
    nll = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), reduction="none")
    return ((nll * mask_BS.flatten()).sum() / mask_BS.sum()).item()


def _saved(out: Path) -> Path:
    """The one checkpoint that NeMo has left."""
    (found,) = (path.parent for path in out.glob("default/checkpoints/*/weights"))
    return found


def _values(folder: Path) -> dict[Any, torch.Tensor]:
    contents = ModelFolder.open(folder).contents
    return {
        (key, layer): torch.from_numpy(raw.view(np.uint8)).view(TORCH[contents.tensors[key].dtype]).double()
        for (key, layer), raw in whole(contents).items()
    }


@pytest.fixture(scope="session")
def tuned(written: Path) -> Callable[[str], tuple[list[dict], Path]]:
    """`llm.finetune` at a topology, once: what its ranks saw and the checkpoint that it left."""
    done = {}

    def run(topology: str, **change: Any) -> tuple[list[dict], Path]:
        tp, pp, _ = TOPOLOGIES[topology]
        name = "-".join(["tuned", topology, *change])
        if name not in done:
            out = written.parent / name
            done[name] = on_stock_ranks(finetune, written, tp, pp, change, out, count=tp * pp), _saved(out)
        return done[name]

    return run


@pytest.mark.parametrize("topology", ["one", "tp2", "pp2", "tp2pp2"])
def test_nemo_fine_tunes_from_what_is_written(written: Path, tuned: Any, topology: str):
    ranks, _ = tuned(topology)
    expected = run_ranks(_loss, written, ranks[0]["batch"])[0]
    assert {rank["class"] for rank in ranks} == {"nemo.collections.llm.gpt.model.nemotron.NemotronModel"}
    first, second = ranks[-1]["losses"]  # NeMo does not tell it to every rank of the earlier stages
    assert first == pytest.approx(expected, abs=2e-6) and abs(second - expected) > 1e-3
    assert (ranks[0]["batch"]["loss_mask"].sum(axis=1) > 0).all()


@pytest.mark.parametrize("topology", ["one", "tp2", "pp2", "tp2pp2"])
def test_what_nemo_has_trained_is_read(world: Path, tuned: Any, topology: str):
    """Without a model_config.yaml of ours, with the optimizer's state beside the weights, and with its own context."""
    _, folder = tuned(topology)
    tp, pp, _ = TOPOLOGIES[topology]
    assert not (folder / "model_config.yaml").exists()
    assert b"optimizer.state.exp_avg" in (folder / "weights" / ".metadata").read_bytes()
    model = ModelFolder.open(folder)
    assert (model.shape, model.dtype, model.is_reward) == (worlds.SHAPE, "fp32", False)
    assert model.contents.saved_with == {"tp": tp, "pp": pp}
    assert model.tokenizer == (world / "tokenizer.model").read_bytes()
    start, alone, here = _values(world / "base"), _values(tuned("one")[1]), _values(folder)
    assert start.keys() == here.keys() == alone.keys()
    assert all((here[key] - alone[key]).abs().max() < 2e-5 for key in here)
    assert any((here[key] - start[key]).abs().max() > 1e-3 for key in here)


def test_a_vocabulary_that_nemo_pads_loads_and_is_read_without_its_padding(world: Path, written: Path, tuned: Any):
    """Without `vocab_size` NeMo makes a multiple of 128 x TP of what the tokenizer has."""
    from nemo_sdg.models.tokenizer import Tokenizer

    ranks, folder = tuned("tp2", vocab_size=None)
    pieces = Tokenizer((world / "tokenizer.model").read_bytes()).vocab_size
    model = ModelFolder.open(folder)
    embedding = model.contents.tensors["model.embedding.word_embeddings.weight"]
    assert model.shape.vocab_size == pieces < 128 and embedding.shape == (pieces, 32)
    assert sum(piece.shape[0] for piece in embedding.by_layer[None]) == 256
    assert ranks[0]["losses"][0] == ranks[1]["losses"][0] and np.isfinite(ranks[0]["losses"]).all()


def test_the_whole_context_opens_and_says_what_was_converted(world: Path, written: Path, tmp_path: Path):
    from nemo.collections import llm
    from nemo.lightning import io

    config = io.load_context(written, subpath="model.config")
    shape = worlds.SHAPE
    assert type(config) is llm.NemotronConfig and (config.bf16, config.params_dtype) == (True, torch.bfloat16)
    for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
                 "kv_channels", "vocab_size", "seq_length", "init_method_std", "rotary_percent", "rotary_base",
                 "layernorm_epsilon"):  # fmt: skip
        assert getattr(config, name) == getattr(shape, name), name
    assert (config.normalization, config.layernorm_zero_centered_gamma) == ("LayerNorm", True)
    assert config.activation_func(torch.tensor([-1.0, 3.0])).tolist() == [0.0, 9.0]
    tokenizer = io.load_context(written, subpath="model.tokenizer")
    assert tokenizer.text_to_ids("<extra_id_1>")[-1] == 5
    moved = tmp_path / "moved"
    os.rename(written, moved)
    try:
        context = io.load_context(moved / "context")
        assert type(context.model) is llm.NemotronModel and context.trainer.strategy.tensor_model_parallel_size == 1
    finally:
        os.rename(moved, written)


def test_a_reward_model_opens_as_the_module_that_trains_one(world: Path, tmp_path: Path):
    from nemo.lightning import io

    from nemo_sdg.training.model import NemotronModule, shape_of

    run_ranks(partial(worlds.write_start, reward=True), tmp_path / "reward", world / "tokenizer.model")
    model = io.load_context(write_nemo2(tmp_path / "reward", tmp_path / "written") / "context", subpath="model")
    assert type(model) is NemotronModule and model.config.reward and shape_of(model.config) == worlds.SHAPE


def _fit(mesh: Any, start: Path, rows: Path, out: Path) -> list[float]:
    from nemo_sdg.config import Models, Training
    from nemo_sdg.training.fit import fit

    settings = Training(steps=3, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3)
    return fit("sft", settings, models=Models(dtype="fp64"), start=start, rows=rows, out=out, mesh=mesh, seed=5)[
        "losses"
    ]


def test_our_own_fit_starts_from_a_nemo_2_folder_as_from_a_released_one(
    world: Path, written: Path, tuned: Any, tmp_path
):
    rows = world / "sft.jsonl"
    released = run_ranks(_fit, world / "base", rows, tmp_path / "released", tp=2)[0]
    assert run_ranks(_fit, written, rows, tmp_path / "written", tp=2)[0] == released
    assert run_ranks(_fit, tuned("tp2")[1], rows, tmp_path / "tuned", pp=2)[0][0] < released[0]
    assert json.loads((tmp_path / "written" / "training.json").read_text())["losses"] == released
