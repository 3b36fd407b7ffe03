"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import RunConfig, fingerprint
from nemo_sdg.config.endpoints import other_server
from nemo_sdg.config.judging import judge_model
from nemo_sdg.engine.backends.choosing import KINDS, Role
from nemo_sdg.engine.load import resolve_dtype
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh, alone
from nemo_sdg.parallel.phases import Phase, Phases
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.store.waves import START, Part
from nemo_sdg.store import Run
from nemo_sdg.store.fits import goes_on
from nemo_sdg.store.spent import Spent

if TYPE_CHECKING:
    from nemo_sdg.console import Console
    from nemo_sdg.engine.residents import Residents


@dataclass(frozen=True)
class Context:
    """One round of one run, as a stage sees it on one rank."""

    config: RunConfig
    run: Run
    round: int
    mesh: Mesh
    """All ranks of the job, laid out for training."""
    console: Console
    phases: Phases | None = None
    """Who generates, scores and judges; None is all ranks, as the job is laid out."""
    residents: Residents | None = None
    """Local models that are kept from stage to stage."""
    rules: tuple[Callable, ...] = ()
    """Rules of selection that the recipe brings."""
    spent: Spent | None = None
    """The time of the round's candidates, on the writer of a run with a target."""
    part: Part = Part()
    """Which batch of candidates, where a round needs several."""

    @property
    def folder(self) -> Path:
        """The folder of this round, or of the part of it that is being made."""
        return self.part.folder(self.run.round(self.round))

    def at(self, part: Part) -> Context:
        """The same round, at another part of its candidates."""
        return replace(self, part=part)

    @property
    def samples(self) -> tuple[int, ...]:
        """Responses to each prompt of this part, by generator. Only the policy revises."""
        settings = self.config.generate
        return (self.config.revise.samples,) if self.part.revision else (settings.samples, *settings.others.values())

    @property
    def generators(self) -> list[Role]:
        """Who answers the prompts of this part, in the order of `samples`: the policy, then generate.others."""
        others = () if self.part.revision else self.config.generate.others
        return [self.role("policy"), *map(self._other, others)]

    @property
    def turn(self) -> int:
        """A number of its own for each wave of each round: what chance follows where prompts are made."""
        return (self.round << 16) + self.part.wave

    @property
    def provenance(self) -> dict[str, int]:
        """Where in the run a row was made."""
        return {"round": self.round, **self.part.provenance}

    def phase(self, name: str) -> Phase:
        """The ranks of `generate`, `score` or `judge`."""
        return getattr(self.phases or Phases.everywhere(self.mesh), name)

    def place(self, role: Role) -> Phase:
        """The ranks that ask or run a role; a model that was trained beside a server's runs where it was trained."""
        phase = KINDS[role.kind]
        if not role.local and role.server is not None:
            return Phase(Grid(), alone(self.mesh))
        apart = role.local and getattr(self.config, phase).backend != "local"
        return Phases.everywhere(self.mesh).generate if apart else self.phase(phase)

    def role(self, kind: str) -> Role:
        """Who answers (policy) or scores (reward) in this round: a server or a foreign model in every round, else the
        local model that the round begins with."""
        if getattr(self.config, KINDS[kind]).backend != "local":
            return self.given(kind)
        return self.local(kind, self.model(kind))

    def judge(self) -> Role:
        """Who is asked about responses, in every round the same: a policy would come to like what it says itself."""
        model = judge_model(self.config) or self._start("policy")
        return Role("judge", self.config, model, residents=self.residents)

    def given(self, kind: str) -> Role:
        """Who answers or scores before anything is trained."""
        return Role(kind, self.config, self._start(kind), residents=self.residents)

    def local(self, kind: str, model: Path | str) -> Role:
        """A model that the run has trained."""
        return Role(kind, self.config, model, given=False, residents=self.residents)

    def model(self, kind: str) -> Path | str:
        """The policy or reward model that this round begins with: the last one trained, or the one it was given."""
        return self.trained(kind, self.round - 1) or self._start(kind)

    def trained(self, kind: str, last: int) -> Path | None:
        """The policy or reward folder of the latest round up to `last` that has trained one which may go on."""

        def latest() -> int | None:
            return next((number for number in range(last, -1, -1) if goes_on(self.run.round(number), kind)), None)

        number = self.on_writer(latest)
        return None if number is None else self.run.round(number) / kind

    def dtype(self, role: Role) -> str | None:
        """The dtype that a model runs in, as it is settled on this machine; None where others decide."""
        asked = self.config.models.dtype
        if not role.local:
            return asked if role.backend == "hf" else None
        return str(resolve_dtype(asked, ModelFolder.open(role.model)))

    def fingerprint(self, stage: str, *, inputs: Any, **settings: Any) -> str:
        """Names what a stage's rows depend on: the stage, its settings and the digests of what it reads."""
        return fingerprint({"stage": stage, "inputs": inputs, "settings": settings})

    def on_writer(self, work: Callable[[], Any]) -> Any:
        """What rank 0 answers, on every rank; see `parallel.agree`."""
        return on_writer(self.mesh, work)

    def _other(self, name: str) -> Role:
        server = other_server(name, self.config.generate)
        return Role("policy", self.config, name, given=False, residents=self.residents, server=server)

    def _start(self, kind: str) -> Path | str:
        """The model that the run was given, or else the one that it trains first."""
        given = self.config.models.instruct if kind == "policy" else self.config.models.reward
        return self.run.out / START / kind if given is None else given
