"""The backend that the settings name for each role: a recipe swaps it by `generate.backend` or `score.backend`.

`Role.identity` is asked on one rank and told to the others; `open` is called on the ranks that do the work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Endpoint, Generate, RunConfig, Score
from nemo_sdg.config.judging import judge_backend, judge_endpoint
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.residents import Residents
from nemo_sdg.parallel.mesh import Mesh

KINDS = {"policy": "generate", "reward": "score", "judge": "generate"}
"""The settings of each role: how its model runs, and where."""


@dataclass
class Role:
    """Who answers (`policy`), scores (`reward`) or is asked about responses (`judge`), before it is there.

    Args:
        model: the folder of a local model; None takes what the settings say, a server too.
    """

    kind: str
    config: RunConfig
    model: Path | str
    given: bool = True
    """The one that the settings name; a model that the run has trained is always local."""
    residents: Residents | None = None
    server: Endpoint | None = None
    """A server that answers beside whoever the settings name."""
    _remote: Any = field(default=None, repr=False)

    @property
    def backend(self) -> str:
        if self.server is not None:
            return "endpoint"
        if self.kind == "judge":
            return judge_backend(self.config)
        return self.settings.backend if self.given else "local"

    @property
    def endpoint(self) -> tuple[Endpoint, str]:
        """The server, and the setting that names it."""
        if self.server is not None:
            return self.server, "generate.others"
        named = (self.settings.endpoint, f"{KINDS[self.kind]}.endpoint")
        return judge_endpoint(self.config) if self.kind == "judge" else named

    @property
    def settings(self) -> Generate | Score:
        return getattr(self.config, KINDS[self.kind])

    @property
    def local(self) -> bool:
        """A model in Megatron on these ranks."""
        return self.backend == "local"

    def identity(self) -> dict[str, str]:
        """What the rows depend on: the digest of a folder, or the name of a server's model."""
        if self.local:
            return {self.kind: ModelFolder.open(self.model).digest}
        return dict(self._other().identity)

    def reach(self) -> None:
        """Raises UserError where a server does not answer, or does not take the key."""
        if self.backend == "endpoint":
            self._other().server.served()

    def open(self, mesh: Mesh, identity: dict[str, str] | None = None) -> Any:
        """The `Generator` or the `Scorer`; of a local one every rank of the mesh gets its part.

        Args:
            identity: as it was told to all ranks; None where nobody asks for it.
        """
        if not self.local:
            if self.backend == "hf" and self.residents is not None and self.config.models.placement == "in_turn":
                self.residents.clear()  # it wants the device
            return self._other()
        from nemo_sdg.engine.backends.local import LocalGenerator, LocalScorer

        residents = self.residents or Residents(several=False)
        models, reward = self.config.models, self.kind == "reward"
        model, tokenizer = residents.take(self.model, mesh, dtype=models.dtype, reward=reward, spec=models.spec)
        kind = LocalScorer if reward else LocalGenerator
        return kind(model, tokenizer, mesh, self.settings, identity or {})

    def _other(self) -> Any:
        """A server's client or a model of transformers, made once."""
        if self._remote is None:
            if self.backend == "hf":
                from nemo_sdg.engine.backends.hf import HfScorer

                self._remote = HfScorer(
                    self.model, dtype=self.config.models.dtype, batch_tokens=self.settings.pack_tokens,
                    own=self.config.reward.own,
                )
            elif self.kind == "reward":
                from nemo_sdg.engine.backends.endpoint import EndpointScorer

                self._remote = EndpointScorer(*self.endpoint, own=self.config.reward.own)
            else:
                from nemo_sdg.engine.backends.endpoint import EndpointGenerator

                self._remote = EndpointGenerator(*self.endpoint, role=self.kind)
        return self._remote


def judging(config: RunConfig) -> Sampling:
    """How the judge answers: always its most probable answer."""
    return Sampling(max_tokens=config.judge.max_tokens, temperature=0.0, seed=config.run.seed)


def sampling(config: RunConfig, *, round: int = 0) -> Sampling:
    """How a run's responses are sampled."""
    return sampled(config.generate, seed=config.run.seed, round=round)


def sampled(settings: Generate, *, seed: int, round: int) -> Sampling:
    """How responses are sampled by these settings."""
    return Sampling(
        max_tokens=settings.max_tokens,
        min_tokens=settings.min_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        stop=tuple(settings.stop),
        logprobs=settings.logprobs,
        seed=seed,
        round=round,
    )
