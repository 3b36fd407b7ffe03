"""Measures a policy and a reward model on rows that no training has seen.

The policy answers greedily and is right or wrong; the reward model scores rows that carry true attributes.
Every replica does its share, and every rank returns the whole result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.rows import rate, respond
from nemo_sdg.engine.sampling import Sampling
from nemo_sdg.errors import UserError
from nemo_sdg.evaluation.agreement import agreement
from nemo_sdg.evaluation.exact_match import exact_match
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Labelled, Prompt, Response, read_rows


def policy(model: Path | str, rows: str, config: RunConfig, mesh: Mesh, console: Console, title: str) -> dict[str, Any]:
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
    greedy = Sampling(max_tokens=config.evaluate.max_tokens, temperature=0.0)
    loaded, tokenizer = load_model(model, mesh, dtype=config.models.dtype, spec=config.models.spec)
    with console.progress(title, len(mine)) as progress:
        responses, _ = respond(
            loaded, tokenizer, mesh, mine, greedy,
            samples=1, slots=config.generate.slots, provenance={}, on_finished=progress.advance,
        )  # fmt: skip
    said = {row.prompt_id: row.response for row in responses}
    # A prompt that got no answer is not right; leaving it out would reward a model for failing.
    pairs = [(said.get(row.id, ""), row.extra["answer"]) for row in mine]
    return {**exact_match(_over_replicas(mesh, pairs)), "faulty": faulty}


def reward(model: Path | str, rows: str, config: RunConfig, mesh: Mesh, console: Console, title: str) -> dict[str, Any]:
    """Agreement with the labels of HelpSteer2 rows: {attribute: {"pearson", "spearman", "mae", "n"}}."""
    labelled, _ = read_rows(rows, Labelled)
    # The schema has no id and rows may repeat, so the place in the file names a row here.
    rows_by_id = {str(i): row for i, row in enumerate(labelled) if i % mesh.dp == mesh.dp_rank}
    mine = [Response(name, name, 0, row.messages, row.response) for name, row in rows_by_id.items()]
    loaded, tokenizer = load_model(model, mesh, dtype=config.models.dtype, reward=True, spec=config.models.spec)
    with console.progress(title, len(mine)) as progress:
        scored, _ = rate(
            loaded, tokenizer, mesh, mine,
            slots=config.score.slots, provenance={}, on_finished=progress.advance,
        )  # fmt: skip
    pairs = [(row.scores, rows_by_id[row.id].labels) for row in scored]
    everywhere = _over_replicas(mesh, pairs)
    return agreement([predicted for predicted, _ in everywhere], [true for _, true in everywhere])


def _over_replicas(mesh: Mesh, values: Sequence[Any]) -> list[Any]:
    """The values of all replicas, in the order of the replicas, on every rank."""
    mesh.meet()
    shares = [mesh.broadcast_object(list(values), src=mesh.tp * replica) for replica in range(mesh.dp)]
    return [value for share in shares for value in share]
