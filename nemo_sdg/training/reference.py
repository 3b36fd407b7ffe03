"""Log-probabilities of the responses under the reference policy: computed once, before the fit, and kept beside it.

Axes: M pairs.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Models, Training, fingerprint
from nemo_sdg.engine.load import load_model, resolve_dtype
from nemo_sdg.errors import UserError
from nemo_sdg.parallel import device, stopping
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.store import commit_json, read_json, rows_digest
from nemo_sdg.training.forward import measured
from nemo_sdg.training.preference import response_log_probs
from nemo_sdg.training.samples import Sample, Samples

PATTERN = "reference-*.json"
"""Files in a fit's working folder that any fit on the same rows from the same start may use."""


def with_reference(
    samples: Samples, settings: Training, *, models: Models, start: ModelFolder, work: Path, mesh: Mesh
) -> Samples:
    """The samples with the reference's log-probabilities behind their rewards: targets fp64 [4].

    The reference is the start model. Read from `work` where an earlier start of the fit has put them.
    Raises:
        UserError: a log-probability is not finite; it names the row.
    """
    name = fingerprint({
        "start": start.digest, "rows": rows_digest(samples.where), "dtype": str(resolve_dtype(models.dtype, start)),
        "lines": [sample.line for sample in samples.rows],
    })  # fmt: skip
    file = work / PATTERN.replace("*", name)
    kept = on_writer(mesh, lambda: read_json(file))
    if kept is None:
        model = _load(start, models, mesh)
        found_M2 = _log_probs(model, samples.rows, settings.micro_batch_size, mesh)
        del model
        gc.collect()  # its parts refer to each other, and the fit wants the memory
        _refuse_not_finite(found_M2, [f"{samples.where}:{one.line}" for one in samples.rows])
        kept = {"log_probs": found_M2.tolist()}
        on_writer(mesh, lambda: commit_json(file, kept))
    found_M2 = torch.tensor(kept["log_probs"], dtype=torch.float64)
    return replace(samples, rows=_joined(samples.rows, found_M2))


class HeldReference:
    """The reference policy in host memory, on the device only while it is asked: for pairs that come while a fit runs."""

    def __init__(self, start: ModelFolder, models: Models, micro_batch_size: int, mesh: Mesh) -> None:
        self._mesh, self._micro_batch_size = mesh, micro_batch_size
        self._model = _load(start, models, mesh).to("cpu")

    def __call__(self, pairs: list[Sample]) -> list[Sample]:
        """The pairs with the reference's log-probabilities behind their rewards: targets fp64 [4]. Errors: as above."""
        if not pairs:
            return []
        self._model.to(device.device())
        found_M2 = _log_probs(self._model, pairs, self._micro_batch_size, self._mesh)
        self._model.to("cpu")
        _refuse_not_finite(found_M2, [f"pair {i} of the policy's own answers" for i in range(len(pairs))])
        return _joined(pairs, found_M2)


def _load(start: ModelFolder, models: Models, mesh: Mesh) -> torch.nn.Module:
    model, _ = load_model(start.path, mesh, dtype=models.dtype, spec=models.spec, give_up=stopping.known)
    stopping.heed_any(mesh, everyone=True)
    return model


def _joined(pairs: Sequence[Sample], logs_M2: Tensor) -> list[Sample]:
    return [replace(pair, targets=torch.cat((pair.targets, logs_2))) for pair, logs_2 in zip(pairs, logs_M2)]


def _log_probs(model: torch.nn.Module, pairs: Sequence[Sample], micro_batch_size: int, mesh: Mesh) -> Tensor:
    """Log-probabilities of the pairs' responses, fp64 [M, 2], on every rank; each pair in a row of its own."""
    return measured([model], pairs, response_log_probs, 2, mesh, reward=False, micro_batch_size=micro_batch_size)


def _refuse_not_finite(found_M2: Tensor, names: Sequence[str]) -> None:
    bad = (~found_M2.isfinite().all(dim=-1)).nonzero().flatten().tolist()
    if bad:
        more = f", and of {len(bad) - 1} others" if len(bad) > 1 else ""
        raise UserError(
            "the reference gives a log-probability that is not finite",
            where=names[bad[0]], found=f"{found_M2[bad[0]].tolist()}{more}",
            expected="finite numbers",
            way_out="take the row out if it alone is meant; of many rows the start model itself is broken",
        )  # fmt: skip
