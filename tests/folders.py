"""Random models as released folders, and a SentencePiece model, for tests that need no trained weights."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import sentencepiece
import torch
from ranks import run_ranks

from nemo_sdg.checkpoints import save
from nemo_sdg.models import nemotron
from nemo_sdg.models.shapes import NemotronShape, sizes
from nemo_sdg.parallel.mesh import Mesh


@lru_cache(maxsize=1)
def small_shape() -> NemotronShape:
    """The tiny architecture at half its width, with a head size that is not hidden / heads."""
    return dataclasses.replace(sizes()["tiny"], hidden_size=64, ffn_hidden_size=128, kv_channels=24, seq_length=256)


def make_tokenizer(path: Path, vocab_size: int = 384) -> Path:
    """A SentencePiece model with Nemotron's special pieces and byte fallback, trained on a few letters."""
    markers = [f"<extra_id_{i}>" for i in range(3)]
    text = path.with_suffix(".txt")
    text.write_text("\n".join(f"{a}{b}{c} {c}{a}{b}" for a in "abcdefghij" for b in "klmnopqr" for c in "stuvwxyz"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(path.with_suffix("")), vocab_size=vocab_size, model_type="bpe",
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, user_defined_symbols=markers, byte_fallback=True,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return path


def make_model(mesh: Mesh, shape: NemotronShape, *, reward: bool, seed: int = 0) -> torch.nn.Module:
    """A model on one rank whose outputs differ visibly between inputs: norms and biases are random too."""
    torch.manual_seed(seed)
    config = nemotron.transformer_config(shape, initialize=True)
    model = nemotron.build(config, shape, pre_process=True, post_process=True, reward=reward)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() == 1 else parameter.mul_(6)
    return model


def make_folder(path: Path, shape: NemotronShape, tokenizer: Path, *, reward: bool = False, seed: int = 0) -> Path:
    """A released folder with random weights, written by a forked rank."""

    def write(mesh: Mesh) -> None:
        save.save(make_model(mesh, shape, reward=reward, seed=seed), path, shape, tokenizer.read_bytes(), mesh)

    run_ranks(write)
    return path
