"""Measures a policy and a reward model on rows that no training has seen.

The policy answers greedily and is right or wrong; the reward model scores rows that carry true attributes.
Every replica does its share, and every rank returns the whole result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from nemo_sdg.console import Console
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.choosing import Role
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.errors import UserError
from nemo_sdg.evaluation.agreement import agreement
from nemo_sdg.evaluation.exact_match import exact_match
from nemo_sdg.parallel import stopping
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Prompt, Response, labelled, read_rows


def policy(role: Role, rows: str, mesh: Mesh, console: Console, title: str) -> dict[str, Any]:
    """Exact match of greedy answers on {"prompt", "answer"} rows: {"exact_match", "n", "faulty"}.

    Raises:
        UserError: no row has a prompt and an answer.
    """
    prompts, faults = read_rows(rows, Prompt)
    asked = [row for row in prompts if isinstance(row.extra.get("answer"), str)]
    faulty = len(faults) + len(prompts) - len(asked)
    if not asked:
        raise UserError(
            "no held-out row can be used", where=rows, found=f"{faulty} faulty rows", expected='"prompt" and "answer" as text',
            way_out="correct the file or set evaluate.exact_match=null",
        )  # fmt: skip
    mine = asked[mesh.dp_rank :: mesh.dp]
    greedy = Sampling(max_tokens=role.config.evaluate.max_tokens, temperature=0.0)
    with console.progress(title, len(mine)) as progress, closing(role.open(mesh)) as generator:
        responses = _rows(generator.generate(mine, greedy, 1), mesh, progress.advance)
    said = {row.prompt_id: row.response for row in responses}
    # A prompt that got no answer is not right; leaving it out would reward a model for failing.
    pairs = [(said.get(row.id, ""), row.extra["answer"]) for row in mine]
    return {**exact_match(_over_replicas(mesh, pairs)), "faulty": faulty}


def reward(role: Role, rows: str, mesh: Mesh, console: Console, title: str) -> dict[str, Any]:
    """Agreement with the labels of HelpSteer2 rows, the user's own too: {attribute: {"pearson", "spearman", "mae", "n"}}."""
    judged, _ = read_rows(rows, labelled(role.config.reward.own))
    # The schema has no id and rows may repeat, so the place in the file names a row here.
    rows_by_id = {str(i): row for i, row in enumerate(judged) if i % mesh.dp == mesh.dp_rank}
    mine = [Response(name, name, 0, row.messages, row.response) for name, row in rows_by_id.items()]
    with console.progress(title, len(mine)) as progress, closing(role.open(mesh)) as scorer:
        scored = _rows(scorer.score(mine), mesh, progress.advance)
    scored.sort(key=lambda row: int(row.id))
    pairs = [(row.scores, rows_by_id[row.id].labels) for row in scored]
    everywhere = _over_replicas(mesh, pairs)
    return agreement([predicted for predicted, _ in everywhere], [true for _, true in everywhere])


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
