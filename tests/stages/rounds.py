"""A round's folder with rows of our choosing, for the tests of single stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_sdg.config import ATTRIBUTES, load
from nemo_sdg.config.evaluating import FILES
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
    inputs += [f"data.prompts={file}", "data.helpsteer2=null", *(f"evaluate.{name}=null" for name in FILES)]
    config = load("tiny", inputs + ["data.prompts_per_round=null", "select.per_prompt=null", *words])
    return Context(config, Run(folder / "run", config, True, None), number, ALONE, SILENT)


def scored(prompt: str, sample: int = 0, response: str = "5", **scores: float) -> Scored:
    """A response to the prompt of this text, 4 in every attribute but those named."""
    asked = ({"role": "user", "content": prompt},)
    values = {name: scores.get(name, 4.0) for name in ATTRIBUTES}
    return Scored(f"{prompt}#{sample}", prompt, sample, asked, response, scores=values)


def write_scored(where: Context, rows: list[Scored]) -> StageStore:
    """What the score stage would have left."""
    return write_stage(where, "scored", [row.to_row() for row in rows])


def write_stage(where: Context, name: str, rows: list[dict]) -> StageStore:
    """What a stage that keeps all its rows would have left."""
    store = StageStore(where.run.round(where.round) / name, "made by hand", len(rows), 3)
    for group in store.missing():
        store.commit(group, rows[group.start : group.stop])
    store.finish({"rows_in": len(rows), "kept": len(rows)})
    return store


def write_up_to_scored(where: Context, rows: list[Scored]) -> None:
    """What the stages up to scoring would have left; who scored is told by the last one."""
    asked = {row.prompt_id: {"id": row.prompt_id, "messages": list(row.messages), **row.extra} for row in rows}
    write_stage(where, "prompts", list(asked.values()))
    write_stage(where, "responses", [{k: v for k, v in row.to_row().items() if k != "scores"} for row in rows])
    write_stage(where, "scored", [{**row.to_row(), "provenance": {**row.provenance, "reward": "r"}} for row in rows])


@contextlib.contextmanager
def killed_after(monkeypatch: pytest.MonkeyPatch, groups: int) -> Iterator[None]:
    """What runs inside is interrupted where it would commit another group than so many."""
    commit, left = StageStore.commit, [groups]

    def killed(self, group, given):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        commit(self, group, given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageStore, "commit", killed)
        yield
