"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import RunConfig, fingerprint
from nemo_sdg.engine.load import resolve_dtype
from nemo_sdg.parallel.agree import on_writer
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

        def latest() -> int | None:
            rounds = range(last, -1, -1)
            return next((number for number in rounds if (self.run.round(number) / kind).is_dir()), None)

        number = self.on_writer(latest)
        return None if number is None else self.run.round(number) / kind

    def model_digest(self, path: Path | str) -> str:
        """Names the content of a model folder, on every rank."""
        return self.on_writer(lambda: ModelFolder.open(path).digest)

    def dtype(self, path: Path | str) -> str:
        """The dtype that a model runs in, as it is settled on this machine."""
        return str(resolve_dtype(self.config.models.dtype, ModelFolder.open(path)))

    def fingerprint(self, stage: str, *, inputs: Any, **settings: Any) -> str:
        """Names what a stage's rows depend on: the stage, its settings and the digests of what it reads."""
        return fingerprint({"stage": stage, "inputs": inputs, "settings": settings})

    def on_writer(self, work: Callable[[], Any]) -> Any:
        """What rank 0 answers, on every rank; see `parallel.agree`."""
        return on_writer(self.mesh, work)
