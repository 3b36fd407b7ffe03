"""Runs with rows of our choosing, decided on by the real selection, for tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rounds import ALONE, SILENT

from nemo_sdg.config import ATTRIBUTES, RunConfig, Select, load
from nemo_sdg.evaluation.report import Result, read
from nemo_sdg.evaluation.report.rows import Rows, read_rows
from nemo_sdg.quality import decide
from nemo_sdg.records import Decision, Scored, shortest_float32
from nemo_sdg.stages import select
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run, StageStore, commit_rows
from nemo_sdg.store.waves import Part

WORDS = ("zebra", "apple", "río", "山", "a-b", "blue", "sky", "and", "then", "42")


def scored(prompt: str, sample: int = 0, response: str = "5", *, asked: str | None = None, **scores: float) -> Scored:
    """A response to the prompt of this name, 4 in every attribute but those named."""
    values = {**dict.fromkeys(ATTRIBUTES, 4.0), **scores}
    turn = {"role": "user", "content": prompt if asked is None else asked}
    return Scored(f"{prompt}#{sample}", prompt, sample, (turn,), response, scores=values)


def fill(place: Path, rows: Sequence[Scored], finished: bool = True) -> None:
    """A stage's folder with these rows."""
    store = StageStore(place, "made by hand", len(rows), 64)
    for group in store.missing():
        store.commit(group, [row.to_row() for row in rows[group.start : group.stop]])
    if finished:
        store.finish({"rows_in": len(rows), "kept": len(rows)})


def run_of(folder: Path, rows: Sequence[Scored], *words: str) -> Result:
    """A run of the tiny world whose first round has these rows, by their waves and revisions, and decisions on them."""
    commit_rows(folder / "prompts.jsonl", [{"id": "p", "prompt": "x"}])
    config = load("tiny", [f"data.prompts={folder}/prompts.jsonl", "run.rounds=1", *words])
    parts: dict[Part, list[Scored]] = {Part(): []}
    for row in rows:
        parts.setdefault(Part.of(row.provenance), []).append(row)
    last = max(part.wave for part in parts)
    with Run.open(folder / "run", config, writer=True) as opened:
        context = Context(config, opened, 0, ALONE, SILENT)
        for wave in range(last + 1):
            for revision in range(config.revise.passes + 1):
                place = Part(wave, revision).folder(opened.round(0))
                some = parts.get(Part(wave, revision), [])
                fill(place / "prompts", [])
                fill(place / "scored", some)
        select.run(context.at(Part(last)))
    return read(folder / "run")


def rows_of(folder: Path, decisions: Sequence[Decision], settings: Select, config: RunConfig) -> Rows:
    """What the report reads of these decisions."""
    config.select = settings
    fill(folder / "decisions", decisions)
    found = read_rows(folder, 0, config, 10**9, 10**9)
    assert found is not None and len(found) == len(decisions)
    return found


def drawn(rng: np.random.Generator, count: int, *, revisions: bool = False, waves: int = 1) -> list[Scored]:
    """Rows with ties, equal texts, scores that are missing or not finite, broken checks and answers that were cut off."""
    made = []
    for number in range(count):
        prompt, sample = f"p{number // 4}", number % 4
        steps = rng.integers(0, 17, 5) / 4 if number % 3 else rng.random(5) * 4
        scores = dict(zip(ATTRIBUTES, map(shortest_float32, steps.astype(np.float32).tolist())))
        if rng.random() < 0.03:
            scores[ATTRIBUTES[rng.integers(5)]] = float(rng.choice([np.nan, -100.0]))
        text = " ".join(rng.choice(WORDS, rng.integers(1, 6)))
        provenance = {"wave": number * waves // count} if waves > 1 else {}
        provenance = {name: wave for name, wave in provenance.items() if wave}
        extra = {"broken": ["too long"]} if rng.random() < 0.05 else {}
        asked = ({"role": "user", "content": f"{rng.choice(WORDS)} {prompt}"},) if sample == 0 else made[-1].messages
        end = "length" if rng.random() < 0.04 else "stop"
        made.append(
            Scored(f"{prompt}#{sample}", prompt, sample, asked, text, finish_reason=end, provenance=provenance,
                   extra=extra, scores=scores)
        )  # fmt: skip
        if revisions and rng.random() < 0.3:
            moves = dict(zip(ATTRIBUTES, rng.normal(size=5)))
            better = {
                name: shortest_float32(float(np.float32(score + moves[name] / 2))) if 0 <= score else score
                for name, score in scores.items()
            }
            of = {**provenance, "revision": 1, "root": f"{prompt}#{sample}", "revises": f"{prompt}#{sample}"}
            made.append(
                Scored(
                    f"{prompt}#{sample}/r1#0",
                    prompt,
                    sample,
                    made[-1].messages,
                    f"{text} again",
                    provenance=of,
                    scores=better,
                )
            )
    # No order of samples or prompts within a part, so that ties are broken by what they should be.
    shuffled = [made[place] for place in rng.permutation(len(made))]
    return sorted(shuffled, key=lambda row: (row.provenance.get("wave", 0), row.provenance.get("revision", 0)))


def decided(rows: Sequence[Scored], settings: Select) -> list[Decision]:
    """As a run decides: with a target, on no more waves than it needs."""
    waves = sorted({row.provenance.get("wave", 0) for row in rows}) if settings.target is not None else [10**9]
    for wave in waves:
        made = decide([row for row in rows if row.provenance.get("wave", 0) <= wave], settings)
        if settings.target is None or sum(row.kept for row in made) >= settings.target:
            break
    return made
