"""Selection with every rule on: rows a second and core, memory a row, and what is found of what was planted.

BENCH_MILLION=1 also selects from 1,000,000 rows; that takes about 12 GB of disk.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import canned
import planted
import pytest
from benchmarks.measuring import Table

from nemo_sdg.config import Select
from nemo_sdg.quality import Selector, decide
from nemo_sdg.quality.personal import find
from nemo_sdg.records import Scored

SIZES = (10_000, 100_000, *([1_000_000] if os.environ.get("BENCH_MILLION") else []))


def write_rows(file: Path, count: int) -> int:
    """Rows of about 4 KB; bytes of the file."""
    with open(file, "w") as out:
        for row in canned.rows(count):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file.stat().st_size


# ru_maxrss would be that of this process, from which the other one is forked.
SELECT = """
import sys, time
from nemo_sdg import cli
status = cli.main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print("USED", status, int(peak) * 1024, time.process_time())
"""


def run_verb(source: Path, rules: dict) -> tuple[int, float]:
    """Peak memory in bytes and seconds of processor of the verb on a file."""
    words = [f"select.{key}={json.dumps(value)}" for key, value in rules.items()]
    command = [sys.executable, "-c", SELECT, "select", "--input", str(source), "--out", str(source) + ".kept", *words]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "USED 0 " in told.stdout, told.stdout[-2000:] + told.stderr[-2000:]
    memory, seconds = told.stdout.split("USED 0 ")[1].split()
    return int(memory), float(seconds)


def test_speed_and_memory(tmp_path: Path):
    table = Table("selection with every rule on, rows of 4 KB, one core")
    rules = canned.RULES | canned.evaluation_files(tmp_path)
    source, peaks = tmp_path / "rows.jsonl", []
    for size in SIZES:
        written = write_rows(source, size)
        memory, seconds = run_verb(source, rules)
        peaks.append(memory)
        table.add(f"`select` on {size:,} rows of {written / size:,.0f} bytes, file to files, rows/s", f"{size / seconds:,.0f}")
        table.add("  peak memory, MB", f"{memory / 1e6:,.0f}")
    for size, before, memory, less in zip(SIZES[1:], SIZES, peaks[1:], peaks):
        each = (memory - less) / (size - before)
        table.add(f"memory from {before:,} to {size:,} rows, bytes a row", f"{each:,.0f}", "<= 1,024")
        assert each <= 1024
    write_rows(source, 10_000)
    rows = [Scored.from_row(json.loads(line)) for line in source.read_text().splitlines()]
    fastest, figures = float("inf"), float("inf")
    for _ in range(3):  # the machine may do other things, too
        selector = Selector(Select(**rules), [canned.own_rule])
        began = time.process_time()
        for row in rows:
            selector.add(row)
        selector.settle()
        kept = sum(decision.kept for decision in selector.decisions(rows))
        decided = time.process_time()
        selector.totals()
        fastest, figures = min(fastest, decided - began), min(figures, time.process_time() - decided)
    table.add("from scored row to decision, rows/s, best of three", f"{len(rows) / fastest:,.0f}", ">= 2,000")
    table.add("  the figures on variety and likeness, s", f"{figures:.1f}")
    assert 0 < kept < len(rows)
    table.show()


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_what_is_found_of_what_was_planted(language: str, tmp_path: Path):
    table = Table(f"planted among 2,000 rows, {language}: precision and recall")
    rng = random.Random(17)
    some = [planted.words(rng, language, 100) for _ in range(2000)]
    rows = [planted.row(f"r{n}", planted.text(rng, language, 20), planted.joined(one, language)) for n, one in enumerate(some)]
    for changes in (0, 1, 2, 4):
        edited = [planted.joined(planted.edited(rng, one, language, changes), language) for one in some[:200]]
        copies = [planted.row(f"c{n}", f"x{n}", text, scalar=3.9) for n, text in enumerate(edited)]
        gone = {d.id for d in decide([*rows, *copies], Select(minimum={}, near_duplicates=0.6)) if not d.kept}
        _add(table, f"near duplicates, {changes} of 100 words changed", {row.id for row in copies}, gone)
    secret = [planted.text(rng, language, 30) for _ in range(200)]
    file = tmp_path / "held.jsonl"
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in secret))
    for name, change in (
        ("verbatim", lambda text: text),
        ("in other case, width and punctuation", lambda text: planted.disguised(text, language)),
        ("the first 60 % of it", lambda text: text[: len(text) * 6 // 10]),
    ):
        around = [planted.text(rng, language, 50) for _ in secret]
        leaky = [planted.row(f"l{n}", f"x{n}", f"{a} {change(t)} {a}") for n, (a, t) in enumerate(zip(around, secret))]
        gone = {d.id for d in decide([*rows, *leaky], Select(minimum={}, decontaminate=[str(file)])) if not d.kept}
        _add(table, f"leaks in a longer text, {name}", {row.id for row in leaky}, gone)
    for kind, makers in planted.PERSONAL.items():
        planted_here, found = set(), set()
        for number in range(1000):
            one = list(some[number][:40])
            mine = number % 2 == 0
            one.insert(rng.randrange(40), f" {rng.choice(makers if mine else planted.HARMLESS)(rng)} ")
            planted_here |= {number} if mine else set()
            found |= {number for span in find(planted.joined(one, language)) if span[2] == kind}
        _add(table, f"personal data, {kind}", planted_here, found)
    texts = [planted.joined(one[: 10 + n % 90], language) for n, one in enumerate(some)]
    biased = [planted.row(f"b{n}", "q", text, scalar=float(n % 90) / 30) for n, text in enumerate(texts)]
    for name, free in (("as it is", False), ("length_free", True)):
        selector = Selector(Select(minimum={}, percentile=75.0, length_free=free))
        for row in biased:
            selector.add(row)
        selector.settle()
        list(selector.decisions(biased))
        told = selector.totals()["length"]
        what = f"scores that follow length, {name}: share that length alone would keep"
        table.add(what, f"{told['longest']:.2f}", f"chance {told['chance']:.2f}")
    table.show()


def _add(table: Table, what: str, there: set, found: set) -> None:
    precision, recall = planted.rates(there, found)
    table.add(what, f"{precision:.3f} {recall:.3f}")
    assert precision > 0.9 and recall > 0.9, what
