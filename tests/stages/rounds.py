"""A round's folder with rows of our choosing, for the tests of single stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from nemo_sdg.config import ATTRIBUTES, load
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run, StageStore, commit_rows

ALONE = Mesh(
    tp=1, pp=1, dp=1, tp_rank=0, pp_rank=0, dp_rank=0, rank=0, tp_group=None, pp_group=None, dp_group=None, timeout_s=1
)
"""The mesh of a single rank, without a process group."""
SILENT = SimpleNamespace(say=lambda text: None)


def context(folder: Path, *words: str, number: int = 0, prompts: list[dict] | None = None) -> Context:
    """A run in `folder`/run whose inputs are the files beside it; `key=value` words change its settings."""
    file = folder / "prompts.jsonl"
    if not file.exists():
        commit_rows(file, prompts or [{"id": "p", "prompt": "x"}])
    inputs = [f"models.{name}=nowhere" for name in ("base", "instruct", "reward")]
    inputs += [f"data.prompts={file}", "data.helpsteer2=null", "evaluate.exact_match=null", "evaluate.helpsteer2=null"]
    config = load("tiny", inputs + ["data.prompts_per_round=null", "select.per_prompt=null", *words])
    return Context(config, Run(folder / "run", config, True, None), number, ALONE, SILENT)


def scored(prompt: str, sample: int = 0, response: str = "5", **scores: float) -> Scored:
    """A response to the prompt of this text, 4 in every attribute but those named."""
    asked = ({"role": "user", "content": prompt},)
    values = {name: scores.get(name, 4.0) for name in ATTRIBUTES}
    return Scored(f"{prompt}#{sample}", prompt, sample, asked, response, scores=values)


def write_scored(where: Context, rows: list[Scored]) -> StageStore:
    """What the score stage would have left."""
    store = StageStore(where.run.round(where.round) / "scored", "made by hand", len(rows), 3)
    for group in store.missing():
        store.commit(group, [row.to_row() for row in rows[group.start : group.stop]])
    store.finish({"rows_in": len(rows), "kept": len(rows)})
    return store
