"""What selection keeps from wave to wave: figures, not texts, and no part is read more often because others follow."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import canned
import pytest
from rounds import context

from nemo_sdg.errors import StoreError
from nemo_sdg.records import Scored
from nemo_sdg.stages import revise, select
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, parts
from nemo_sdg.store.waves import Part, wave_parts

WAVES, PASSES = 3, 2


@pytest.fixture
def where(tmp_path: Path) -> Context:
    """Three waves, each with two passes of revision; near duplicates lie in different waves."""
    words = ("select.near_duplicates=0.8", "select.per_prompt=2", "select.target=60", "select.minimum={helpfulness: 1.5}")
    made = context(tmp_path, *words, f"revise.passes={PASSES}", "revise.margin=4", "generate.group_size=4")
    rng, rows = random.Random(2), list(map(Scored.from_row, canned.rows(60, 700)))
    for wave in range(WAVES):
        some = rows[20 * wave : 20 * wave + 20]
        some += [dataclasses.replace(row, id=f"{row.id}~{wave}", response=row.response + "!") for row in rows[:wave]]
        for part in wave_parts(wave, PASSES):
            if part.revision:
                some = [_revised(row, part, rng) for row in some if rng.random() < 0.5]
            put(made.at(part), some)
    return made


def _revised(row: Scored, part: Part, rng: random.Random) -> Scored:
    said = {"root": row.provenance.get("root", row.id), "revises": row.id}
    scores = {name: rng.uniform(0, 4) for name in row.scores}
    return dataclasses.replace(row, id=f"{row.id}/r{part.revision}#0", provenance=said, scores=scores)


def put(where: Context, rows: list[Scored]) -> None:
    store = StageStore(where.folder / "scored", "made by hand", len(rows), 10)
    for group in store.groups:
        store.commit(group, [row.to_row() for row in rows[group.start : group.stop]])
    store.finish({"rows_in": len(rows), "kept": len(rows)})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often the rows of each file were read."""
    counted, check = Counter(), parts.check_part
    monkeypatch.setattr(parts, "check_part", lambda file: (counted.update([file]), check(file))[1])
    return counted


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_each_part_is_read_when_it_is_new_and_when_its_decisions_are_written(where, reads):
    known = select.Candidates()
    for wave in range(WAVES):
        select.accepted(where.at(Part(wave)), known)
        new = set(where.at(Part(wave)).folder.glob("scored/part-*"))
        assert new and all(reads[file] == 1 for file in new)
    select.run(where.at(Part(WAVES - 1)), known)
    scored = [file for file in reads if file.parent.name == "scored"]
    assert len(scored) == len(list(where.folder.rglob("scored/part-*"))) and {reads[file] for file in scored} == {2}


def test_the_decisions_are_those_of_a_start_that_has_lost_everything(where, tmp_path):
    known, counts = select.Candidates(), []
    for wave in range(WAVES):
        counts.append(select.accepted(where.at(Part(wave)), known))
        assert counts[-1] == select.accepted(where.at(Part(wave)), select.Candidates())
    assert counts[0] < counts[1] <= counts[2], "a wave adds nothing, so this shows nothing"
    last = where.at(Part(WAVES - 1))
    totals = select.run(last, known)
    assert totals["dropped"]["near duplicate of a better one"] and len(totals["revised"]) == PASSES
    made = files(where.folder / "decisions")
    (where.folder / "decisions").rename(tmp_path / "first")
    assert select.run(last) == totals and files(where.folder / "decisions") == made


def test_what_has_changed_is_read_anew(where, tmp_path, reads):
    """Parts that were made anew, and the files that rows are held against."""
    held = tmp_path / "held.jsonl"
    held.write_text('{"text": "nothing of this"}\n')
    settings = dataclasses.replace(where.config.select, decontaminate=[str(held)])
    where, known = dataclasses.replace(where, config=dataclasses.replace(where.config, select=settings)), select.Candidates()
    before = select.accepted(where, known)
    text = next(StageStore.finished(where.folder / "scored").read())["messages"][0]["content"]
    held.write_text(f'{{"prompt": "{text}"}}\n')
    assert select.accepted(where, known) == select.accepted(where, select.Candidates()) < before
    rows = [Scored.from_row(row) for row in StageStore.finished(where.folder / "scored").read()][:10]
    for file in (where.folder / "scored").iterdir():
        file.unlink()
    put(where, rows)
    reads.clear()
    assert select.accepted(where, known) == select.accepted(where, select.Candidates())
    assert {count for file, count in reads.items() if file.parent.parent == where.folder} == {2}


def test_revisions_are_asked_for_without_a_text_in_memory_and_each_part_is_read_twice(where, reads):
    """Once for its figures, once for the texts of those that are asked for again; two groups of prompts at least."""
    totals = revise.run(where.at(Part(0, 2)))
    prompts = [row["id"] for row in StageStore.finished(where.folder / "revise-2/prompts").read()]
    assert totals["kept"] == len(prompts) > 4 and totals["rows_in"] == 20
    by_number = {row["id"]: n for n, row in enumerate(StageStore.finished(where.folder / "scored").read())}
    order = [by_number[name.split("/")[0]] for name in prompts]
    assert order == sorted(order) and any("/r1#0/r2" in name for name in prompts)
    counts = {reads[file] for source in (where.folder, where.folder / "revise-1") for file in source.glob("scored/part-*")}
    assert counts <= {2, 3}  # the last read is this test's own


def test_rows_of_earlier_numbers_are_found_too(where):
    answers = revise._Answers([StageStore.finished(where.folder / "scored")], where.config)
    ids = [row["id"] for row in StageStore.finished(where.folder / "scored").read()]
    assert [row.id for row in answers.rows([3, 7, 2, 2, 19, 0])] == [ids[n] for n in (3, 7, 2, 2, 19, 0)]
