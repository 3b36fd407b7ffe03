"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from nemo_sdg import errors
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import RunConfig, fingerprint
from nemo_sdg.store import Run

if TYPE_CHECKING:
    from nemo_sdg.console import Console
    from nemo_sdg.parallel.mesh import Mesh


@dataclass(frozen=True)
class Context:
    """One round of one run, as a stage sees it on one rank."""

    config: RunConfig
    run: Run
    round: int
    mesh: Mesh
    console: Console

    @property
    def folder(self) -> Path:
        """The folder of this round."""
        return self.run.round(self.round)

    def model(self, kind: str) -> Path | str:
        """The policy or reward model that this round begins with: the last one trained, or the one it was given."""
        return self.trained(kind, self.round - 1) or (
            self.config.models.instruct if kind == "policy" else self.config.models.reward
        )

    def trained(self, kind: str, last: int) -> Path | None:
        """The policy or reward folder of the latest round up to `last` that has trained one."""
        folders = (self.run.round(number) / kind for number in range(last, -1, -1))
        return next((folder for folder in folders if folder.is_dir()), None)

    def model_digest(self, path: Path | str) -> str:
        """Names the content of a model folder, on every rank."""
        return self.on_writer(lambda: {"digest": ModelFolder.open(path).digest})["digest"]

    def fingerprint(self, stage: str, *, inputs: Any, **settings: Any) -> str:
        """Names what a stage's rows depend on: the stage, its settings and the digests of what it reads."""
        return fingerprint({"stage": stage, "inputs": inputs, "settings": settings})

    def on_writer(self, work: Callable[[], dict]) -> dict:
        """Does `work` on rank 0 and gives every rank its answer, which is JSON.

        A user's mistake found there is raised on every rank, or the others would wait for rank 0 in vain.
        """
        answer, raised = None, None
        if self.mesh.writer:
            try:
                answer = {"done": work()}
            except errors.UserError as error:
                raised = error
                told = [error.what, *map(_text, (error.where, error.found, error.expected)), error.way_out]
                answer = {"mistake": [type(error).__name__, told]}
        answer = self.mesh.broadcast_object(answer)
        if raised is not None:
            raise raised
        if "mistake" in answer:
            name, (what, where, found, expected, way_out) = answer["mistake"]
            raise getattr(errors, name)(what, where=where, found=found, expected=expected, way_out=way_out)
        return answer["done"]


def _text(value: object) -> str | None:
    return None if value is None else str(value)
