"""Instruct answers the round's prompts: prompts/ becomes responses/."""

from __future__ import annotations

from typing import Any

from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.rows import respond
from nemo_sdg.engine.sampling import Sampling
from nemo_sdg.records import Prompt
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore

VERSION = 1
"""Raised when the code changes what the same settings give."""


def run(context: Context) -> dict[str, Any]:
    """Generates what is not committed yet.

    Returns:
        {"rows_in", "kept", "dropped", "faulty"}, counted in responses, and "tokens", "by_finish_reason".
    """
    settings, models = context.config.generate, context.config.models
    source = StageStore.finished(context.folder / "prompts")
    prompts = [Prompt.from_row(row) for row in source.read()]
    seed = context.config.run.seed
    model_path = context.model("policy")
    provenance = {
        "policy": context.model_digest(model_path),
        "template": "instruct",
        "seed": seed,
        "round": context.round,
    }
    store = StageStore(
        context.folder / "responses",
        context.fingerprint(
            "generate",
            version=VERSION,
            inputs=[source.digest, provenance],
            dtype=context.dtype(model_path),
            spec=models.spec,
            **groups.relevant(settings, "slots"),
        ),  # fmt: skip
        rows=len(prompts),
        group_size=settings.group_size,
    )
    sampling = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=seed,
        round=context.round,
    )

    def totals(rows: list[dict], faulty: dict[str, int]) -> dict[str, Any]:
        reasons = [row["finish_reason"] for row in rows]
        return {
            "rows_in": len(prompts) * settings.samples,
            "kept": len(rows),
            "dropped": {},
            "faulty": faulty,
            "tokens": sum(len(row["response_token_ids"]) for row in rows),
            "by_finish_reason": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        }

    with groups.Work(
        context, store, "generate", count=lambda group: (group.stop - group.start) * settings.samples
    ) as work:
        if work.needed:
            model, tokenizer = load_model(model_path, context.mesh, dtype=models.dtype, spec=models.spec)
        for group in work.mine:
            responses, faulty = respond(
                model, tokenizer, context.mesh, prompts[group.start : group.stop], sampling,
                samples=settings.samples, slots=settings.slots, provenance=provenance, on_finished=work.advance,
            )  # fmt: skip
            work.commit(group, responses, faulty)
    return work.finish(totals)
