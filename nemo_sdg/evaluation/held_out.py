"""Asks policies and reward models about held-out rows, every replica its share, and puts the answers together on all ranks.

A policy answers greedily. What is made of the answers is in `measures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, Optional

from nemo_sdg.console import Console
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.choosing import Role
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.parallel import stopping
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.phases import Phase
from nemo_sdg.records import Prompt, Response, hash_of
from nemo_sdg.records.fields import Message

AT_ONCE = 256
"""Conversations that a scorer is given at a time; between them a run can be told to stop."""
Scores = Optional[dict[str, float]]
"""By attribute; None of a conversation that the model cannot score."""


def answers(role: Role, prompts: Iterable[Prompt], mesh: Mesh, console: Console, title: str) -> dict[str, str]:
    """What a policy says, by the name of the conversation (`hash_of`); without those that it cannot answer.

    A conversation that stands in several files, or several times in one, is asked once.
    """
    asked = [Prompt(name, messages) for name, messages in {hash_of(p.messages): p.messages for p in prompts}.items()]
    mine = asked[mesh.dp_rank :: mesh.dp]
    greedy = Sampling(max_tokens=role.config.evaluate.max_tokens, temperature=0.0)
    with console.progress(title, len(mine)) as progress, closing(role.open(mesh)) as generator:
        made = _rows(generator.generate(mine, greedy, 1), mesh, progress.advance)
    return dict(_over_replicas(mesh, [[row.prompt_id, row.response] for row in made]))


def scores(
    role: Role, groups: Sequence[Sequence[tuple[Sequence[Message], str]]], mesh: Mesh, console: Console, title: str
) -> list[list[Scores]]:
    """The scores of groups of conversations, (messages, response) each, in their order; a group is scored together."""
    shares = [range(len(group) * mesh.dp_rank // mesh.dp, len(group) * (mesh.dp_rank + 1) // mesh.dp) for group in groups]
    found: list[list[Scores]] = [[None] * len(group) for group in groups]
    with console.progress(title, sum(map(len, shares))) as progress, closing(role.open(mesh)) as scorer:
        made = []
        for number, (group, share) in enumerate(zip(groups, shares)):
            # The rows of a file may repeat, so the place in it names a row here.
            rows = [Response(str(i), str(i), 0, tuple(group[i][0]), group[i][1]) for i in share]
            for at in range(0, len(rows), AT_ONCE):
                scored = _rows(scorer.score(rows[at : at + AT_ONCE]), mesh, progress.advance)
                made += [[number, int(row.id), row.scores] for row in scored]
    for number, place, row in _over_replicas(mesh, made):
        found[number][place] = row
    return found


def on_phase(job: Mesh, place: Phase, work: Callable[[Mesh], Any]) -> Any:
    """What the ranks of a phase find, on every rank of the job."""
    found = work(place.mesh) if place.mesh is not None else None
    job.meet()
    return job.broadcast_object(found, src=place.grid.first)


def asked(role: Role, prompts: Iterable[Prompt], job: Mesh, place: Phase, console: Console, title: str) -> dict[str, str]:
    """`answers` of the ranks of a phase, on every rank of the job; nobody is loaded where nothing is asked."""
    prompts = list(prompts)
    return on_phase(job, place, lambda mesh: answers(role, prompts, mesh, console, title)) if prompts else {}


def _rows(made: Iterable[Response | Refusal], mesh: Mesh, advance: Any) -> list[Any]:
    """What was answered or scored; what was refused is left out."""
    rows = []
    for number, row in enumerate(made, start=1):
        mesh.alive()
        if number % stopping.HEED_EVERY == 0:
            stopping.heed(mesh)
        advance()
        if not isinstance(row, Refusal):
            rows.append(row)
    return rows


def _over_replicas(mesh: Mesh, values: Sequence[Any]) -> list[Any]:
    """The values of all replicas, in the order of the replicas, on every rank."""
    mesh.meet()
    shares = [mesh.broadcast_object(list(values), src=mesh.tp * replica) for replica in range(mesh.dp)]
    return [value for share in shares for value in share]
