"""What becomes of a mutated checkpoint: read, loaded into a model full of not-a-number, and verified."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from mutations import Mutation, mutate
from random_checkpoints import Bits, little_shape, random_bits, read_bits, write_release

from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.checkpoints.verify import verify
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.nemotron import build, transformer_config

KINDS = ("release", "hf", "nemo2")
SHAPE = little_shape(num_layers=2, kv_channels=8)


def good_ones(root: Path) -> dict[str, Path]:
    """A reward model with SHA256SUMS, and cut for two ranks, so that each tensor has several pieces."""
    write_release(root / "start", SHAPE, random_bits(SHAPE, reward=True, head_bias=True))
    for to in KINDS:
        convert(str(root / "start"), root / to, to, Console(io.StringIO()), tp=2)
    return {to: root / to for to in KINDS}


class Judge:
    """One rank with a model, which every mutated checkpoint is loaded into."""

    def __init__(self, mesh, good: Path) -> None:  # noqa: ANN001
        self.mesh, self.good = mesh, good
        self.truth = read_bits(good)
        config = transformer_config(SHAPE, dtype=torch.float32)
        self.model = build(config, SHAPE, pre_process=True, post_process=True, reward=True, head_bias=True)
        self.filled = self.fill(good)

    def fill(self, path: Path) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(torch.nan)
        fill(self.model, ModelFolder.open(path), self.mesh)
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def read(self, path: Path) -> Bits | CheckpointError:
        try:
            folder = ModelFolder.open(path)
            survey(folder)
            bits = read_bits(path)
            if (folder.shape, folder.tokenizer) != (SHAPE, ModelFolder.open(self.good).tokenizer):
                bits = {}
            return bits
        except CheckpointError as error:
            return error

    def same(self, bits: Bits) -> bool:
        return bits.keys() == self.truth.keys() and all(
            bits[k].dtype == v.dtype and np.array_equal(bits[k], v) for k, v in self.truth.items()
        )

    def loads(self, path: Path) -> str:
        """What becomes of a model's parameters."""
        try:
            filled = self.fill(path)
        except CheckpointError:
            return "refused"
        if any(torch.isnan(value).any() for value in filled.values()):
            return "NaN left"
        return "equal" if all(torch.equal(value, self.filled[name]) for name, value in filled.items()) else "other"

    def verified(self, path: Path) -> list[str]:
        try:
            return verify(str(path), Console(io.StringIO()), threads=1)
        except CheckpointError as error:
            return [str(error)]

    def __call__(self, path: Path, made: Mutation) -> tuple[str, str | None]:
        """(what became of it, what is wrong with that)."""
        found, loaded = self.read(path), self.loads(path)
        problems = self.verified(path)
        if not problems:
            return "?", "verify found nothing"
        if not any(name in problem for problem in problems for name in made.names):
            return "?", f"verify does not name {made.names}: {problems}"
        if isinstance(found, CheckpointError):
            if loaded != "refused":
                return "refused", f"read_bits refused what fill took ({loaded}): {found}"
            if not any(name in str(found) for name in made.names):
                return "refused", f"the refusal does not name {made.names}: {found}"
            if found.found is None or found.expected is None:
                return "refused", f"the refusal does not say what was found and expected: {found}"
            return "refused", None
        if self.same(found):
            return "bit-equal", None if loaded == "equal" else f"the bits are equal, but fill {loaded}"
        if loaded == "NaN left":
            return "?", "a parameter was not filled"
        return "only verify", None if made.content else "read as something else"


def judged(mesh, good: Path, kind: str, seeds: range) -> list[tuple[str, int, str, str | None]]:  # noqa: ANN001
    judge, results = Judge(mesh, good), []
    with tempfile.TemporaryDirectory() as root:
        for seed in seeds:
            path = Path(shutil.copytree(good, Path(root) / f"{kind}-{seed}"))
            made = mutate(path, kind, seed)
            try:
                outcome, wrong = judge(path, made)
            except Exception as error:
                outcome, wrong = "crash", f"{type(error).__name__}: {error}"
            results.append((made.kind, seed, outcome, wrong))
            shutil.rmtree(path)
    return results
