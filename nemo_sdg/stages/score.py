"""Reward gives each response its five attributes: responses/ becomes scored/."""

from __future__ import annotations

from typing import Any

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.rows import rate
from nemo_sdg.records import Response
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore

VERSION = 1
"""Raised when the code changes what the same settings give."""


def run(context: Context) -> dict[str, Any]:
    """Scores what is not committed yet.

    Returns:
        {"rows_in", "kept", "dropped", "faulty"} in responses, and "mean", the mean of each attribute.
    """
    settings, models = context.config.score, context.config.models
    source = StageStore.finished(context.folder / "responses")
    responses = [Response.from_row(row) for row in source.read()]
    model_path = context.model("reward")
    provenance = {"reward": context.model_digest(model_path)}
    store = StageStore(
        context.folder / "scored",
        context.fingerprint(
            "score",
            version=VERSION,
            inputs=[source.digest, provenance],
            dtype=context.dtype(model_path),
            spec=models.spec,
        ),
        rows=len(responses),
        group_size=settings.group_size,
    )

    def totals(rows: list[dict], faulty: dict[str, int]) -> dict[str, Any]:
        means = {name: sum(row["scores"][name] for row in rows) / max(1, len(rows)) for name in ATTRIBUTES}
        return {"rows_in": len(responses), "kept": len(rows), "dropped": {}, "faulty": faulty, "mean": means}

    with groups.Work(context, store, "score", count=lambda group: group.stop - group.start) as work:
        if work.needed:
            model, tokenizer = load_model(model_path, context.mesh, dtype=models.dtype, reward=True, spec=models.spec)
        for group in work.mine:
            scored, faulty = rate(
                model, tokenizer, context.mesh, responses[group.start : group.stop],
                slots=settings.slots, provenance=provenance, on_finished=work.advance,
            )  # fmt: skip
            work.commit(group, scored, faulty)
    return work.finish(totals)
