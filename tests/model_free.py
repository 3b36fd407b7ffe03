"""A whole round without a model: the real stages, with canned answers, scores and weights where models would be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rounds import ALONE

from nemo_sdg.config import ATTRIBUTES, RunConfig, load
from nemo_sdg.config.evaluating import FILES
from nemo_sdg.console import Console
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.errors import RowError
from nemo_sdg.evaluation import report
from nemo_sdg.evaluation.report import page
from nemo_sdg.records import Prompt, Response, Scored
from nemo_sdg.stages import assemble, groups, prompts, select
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run, StageStore, commit_folder, commit_json, write_sums
from nemo_sdg.store.files import make_folder, refusing, write_file

SAMPLES = 2
LABELS = dict(correctness=4, coherence=4, complexity=1, verbosity=0)


def inputs(folder: Path, count: int = 4) -> Path:
    """Prompts and rated rows, one line of each faulty."""
    rows = [json.dumps({"id": f"p{index}", "prompt": f"say {index}"}) for index in range(count)]
    (folder / "prompts.jsonl").write_text("\n".join([*rows, '{"id": "cut", "prom']) + "\n")
    rated = [{"prompt": f"rate {i}", "response": "x", "helpfulness": i % 5, **LABELS} for i in range(3)]
    (folder / "rated.jsonl").write_text("\n".join([*map(json.dumps, rated), "[]"]) + "\n")
    return folder


def settings(folder: Path) -> RunConfig:
    words = [f"models.{name}=nowhere" for name in ("base", "instruct", "reward")]
    words += [f"data.prompts={folder}/prompts.jsonl", f"data.helpsteer2={folder}/rated.jsonl", "run.rounds=1"]
    words += [*(f"evaluate.{name}=null" for name in FILES), "data.prompts_per_round=null"]
    return load("tiny", [*words, "generate.group_size=2", f"generate.samples={SAMPLES}", "reward.enabled=false"])


def run(config: RunConfig, out: Path, promise: Callable[[], None] = lambda: None) -> None:
    """All stages, continuing what is there.

    Args:
        promise: called wherever somebody may count on what is there.
    """
    with Run.open(out, config, writer=True) as opened:
        promise()
        opened.events("started")
        where = Context(config, opened, 0, ALONE, Console(speaks=False))
        prompts.run(where)
        promise()
        _set_aside_and_think_again(where, promise)
        for stage in (_generate, _score, select.run, assemble.run, _train, _evaluate):
            stage(where)
            promise()
        if not (out / "report.html").exists():  # it names itself where it is there
            page.write(report.read(out))
        promise()


def _set_aside_and_think_again(where: Context, promise: Callable[[], None]) -> None:
    """An attempt that set a row aside and was killed before its commit, and the next one, in which the row is good."""
    store = _responses(where)
    if 1 not in store.present():
        for reasons in ([{"id": "p2#0", "reason": "no answer"}], []):
            store.set_aside(store.groups[1], reasons)
            promise()


def _responses(where: Context) -> StageStore:
    source = StageStore.finished(where.folder / "prompts")
    return StageStore(where.folder / "responses", "canned", source.rows, source.group_size)


def _generate(where: Context) -> None:
    source, store = StageStore.finished(where.folder / "prompts"), _responses(where)

    def ask(group):
        asked = map(Prompt.from_row, source.rows_of(group))
        return [(prompt, [f"{prompt.id}#{sample}" for sample in range(SAMPLES)]) for prompt in asked]

    def answer(asked):
        for prompt in asked:
            for sample in range(SAMPLES):
                name = f"{prompt.id}#{sample}"
                if name == "p1#1":
                    yield Refusal(name, RowError("too long", found="9 tokens"))
                else:
                    yield Response(name, prompt.id, sample, prompt.messages, f"{prompt.id} said {sample}")

    _work(where, store, ask, answer, source.rows * SAMPLES)


def _score(where: Context) -> None:
    source = StageStore.finished(where.folder / "responses")
    store = StageStore(where.folder / "scored", "canned", source.rows, source.group_size)

    def ask(group):
        return [(row, [row.id]) for row in map(Response.from_row, source.rows_of(group))]

    def score(rows):
        for row in rows:
            yield Scored(**vars(row), scores=dict.fromkeys(ATTRIBUTES, 2.5 + row.sample))

    _work(where, store, ask, score, len(list(source.read())))


def _work(where: Context, store: StageStore, ask, answer, rows_in: int) -> None:
    with groups.Work(where, store, "canned", mesh=ALONE, count=lambda group: 2) as work:
        for _ in work.run(work.mine, ask, answer, provenance={"policy": "canned"}):
            pass
    work.finish(lambda rows, faulty: {"rows_in": rows_in, "kept": len(list(rows)), "dropped": {}, "faulty": faulty})


def _train(where: Context) -> None:
    """Commits a folder as a fit does: files that nobody synced, under a name that is not the final one."""
    final = where.folder / "policy"
    if final.exists():
        return
    making = where.folder / ".policy.fit" / "step-00000001"
    with refusing(making):
        make_folder(making / "weights")
    write_file(making / "weights" / "shard", bytes(range(256)) * 40)
    write_file(making / "training.json", b'{"losses": [2.0, 1.0], "rows": 3, "rows_set_aside": {}}')
    write_sums(making)
    commit_folder(making, final)


def _evaluate(where: Context) -> None:
    nothing = {"policy": {"exact_match": 0.5, "n": 4}, "reward": None}
    if not (where.folder / "evaluation.json").exists():
        commit_json(where.folder / "evaluation.json", {**nothing, "before": nothing})
