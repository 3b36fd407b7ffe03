"""One SFT and one DPO step against TRL's trainers: the same loss and gradients from the same weights and rows, in fp32."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file

from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Models, Preference, Training
from nemo_sdg.console import Console
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training.preference import preference_sample
from nemo_sdg.training.samples import Sample, sft_sample
from training import worlds

pytest.importorskip("trl")
STEP = dict(steps=1, global_batch_size=6, micro_batch_size=2, max_length=256, learning_rate=1e-5, clip_grad=0.0)
SETTINGS = {"sft": Training(**STEP), "preference": Preference(**STEP, objective="dpo", beta=0.1, sft_weight=0.0)}
ROWS = {"sft": worlds.sft_rows(6), "preference": worlds.pair_rows(6)}


def one_step(mesh: Any, world: Path, task: str, out: Path) -> float:
    """The loss; the gradients of a real fit's step go into a model folder, in place of weights."""
    from nemo_sdg.checkpoints import save
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.training.fit import fit
    from nemo_sdg.training.strategy import FitStrategy

    step, found = FitStrategy.training_step, {}

    def keeping(self: Any, *args: Any, **options: Any) -> Any:
        loss = step(self, *args, **options)
        (model,) = self.model
        while hasattr(model, "module"):
            model = model.module
        found.update({name: value.main_grad.clone() for name, value in model.named_parameters()})
        return loss

    FitStrategy.training_step = keeping
    rows = worlds.write_rows(out.with_suffix(".jsonl"), ROWS[task])
    options = {"models": Models(dtype="fp32"), "start": world / "base", "rows": rows, "seed": 5}
    result = fit(task, SETTINGS[task], out=out.with_suffix(".fit"), mesh=mesh, **options)
    model, _ = load_model(world / "base", mesh, dtype="fp32")
    for name, value in model.named_parameters():
        value.data.copy_(found[name])
    folder = ModelFolder.open(world / "base")
    save.save(model, out, folder.shape, folder.tokenizer, mesh, dtype="fp32")
    return result["losses"][0]


def columns(task: str, sample: Sample) -> dict[str, Any]:
    """A sample as TRL's trainers take it when it is tokenised already."""
    ids = [[int(tokens[0]), *labels_of(tokens, labels)] for tokens, labels in zip(sample.sequences, sample.labels)]
    if task == "sft":
        return {"input_ids": ids[0], "completion_mask": [0, *(sample.labels[0] >= 0).int().tolist()]}
    cuts = [len(tokens) - int((labels >= 0).sum()) for tokens, labels in zip(ids, sample.labels)]
    parts = {"chosen_input_ids": ids[0][cuts[0] :], "rejected_input_ids": ids[1][cuts[1] :]}
    return {"prompt_input_ids": ids[0][: cuts[0]], **parts}


def labels_of(tokens: Any, labels: Any) -> list[int]:
    return [*tokens[1:].tolist(), int(labels[-1])]


@pytest.mark.parametrize(("task", "kind"), [("sft", "sft"), ("preference", "dpo")])
def test_a_step_is_that_of_trl(world, tmp_path, task, kind):
    (loss,) = run_ranks(one_step, world, task, tmp_path / "ours")
    convert(world / "base", tmp_path / "hf", "hf", console=Console(io.StringIO()))
    convert(tmp_path / "ours", tmp_path / "gradients", "hf", console=Console(io.StringIO()))
    make, tokenizer = {"sft": sft_sample, "preference": preference_sample}[task], Tokenizer(world / "tokenizer.model")
    rows = [columns(task, make(row, tokenizer)) for row in ROWS[task]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script = Path(__file__).with_name("trl_step.py")
    words = [kind, tmp_path / "hf", tmp_path / "rows.json", tmp_path / "theirs.safetensors"]
    done = subprocess.run(
        [sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with safe_open(words[-1], "pt") as file:
        assert loss == pytest.approx(float(file.metadata()["loss"]), abs=1e-5)
    theirs = load_file(words[-1])
    ours = {}
    for file in (tmp_path / "gradients").glob("*.safetensors"):
        ours |= load_file(file)
    assert ours.keys() == theirs.keys()
    largest = max(value.abs().max().item() for value in theirs.values())
    assert largest > 1e-3
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() < 1e-5 * max(1.0, largest), name
