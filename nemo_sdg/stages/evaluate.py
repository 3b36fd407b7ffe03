"""What the round has gained: the models before the run and after this round, on rows that no training has seen.

Writes `evaluation.json`, whole or not at all. The models that the run started from are measured in round 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_sdg.engine.backends.choosing import Role
from nemo_sdg.evaluation import held_out
from nemo_sdg.stages.context import Context
from nemo_sdg.store import commit_json, read_json
from nemo_sdg.store.fits import fits
from nemo_sdg.store.waves import START

FILE = "evaluation.json"


def run(context: Context) -> dict[str, Any]:
    """Measures the policy and the reward model of this round; does nothing when that is done.

    Returns:
        {"policy": {"exact_match", "n", "faulty"} or None, "reward": {attribute: {...}} or None, "before": the same
        two of the models that the run started from}; where the policy was tuned on pairs after SFT, "sft" is what SFT
        alone has made. None stands for "no held-out rows are set".
    """
    path = context.folder / FILE
    done = _read(context, path)
    if done is not None:
        return done
    models = context.config.models
    named = models.instruct or f"{START}/policy", models.reward or f"{START}/reward"
    before = _before(context)
    after = {
        kind: before[kind] if model is None else _measure(context, context.local(kind, model), f"evaluate {kind}")
        for kind, model in [(kind, context.trained(kind, context.round)) for kind in ("policy", "reward")]
    }
    if any(fit.folder == "sft" for fit in fits(context.config)):
        after["sft"] = _measure(context, context.local("policy", context.folder / "sft"), "evaluate sft")
    result = {**after, "before": before, "models": {"policy": named[0], "reward": named[1]}}
    if context.mesh.writer:
        commit_json(path, result)
    context.mesh.barrier()
    return result


def _before(context: Context) -> dict[str, Any]:
    if context.round > 0:
        first = _read(context, context.run.round(0) / FILE)
        if first is not None:
            return first["before"]
    given = {kind: context.given(kind) for kind in ("policy", "reward")}
    return {kind: _measure(context, role, f"evaluate {kind} before training") for kind, role in given.items()}


def _read(context: Context, path: Path) -> dict[str, Any] | None:
    """What rank 0 finds there, on every rank: a shared file system may show a new file to some ranks first."""
    return context.on_writer(lambda: read_json(path))


def _measure(context: Context, role: Role, title: str) -> dict[str, Any] | None:
    """What the ranks of a phase find, on every rank of the job."""
    settings = context.config.evaluate
    rows = settings.exact_match if role.kind == "policy" else settings.helpsteer2
    if rows is None:
        return None
    measure = held_out.policy if role.kind == "policy" else held_out.reward
    place, found = context.place(role), None
    if place.mesh is not None:
        found = measure(role, rows, place.mesh, context.console, title)
    context.mesh.meet()
    return context.mesh.broadcast_object(found, src=place.grid.first)
