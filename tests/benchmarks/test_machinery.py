"""From scored responses to datasets without a model: the stages select and assemble of a run, with every rule on.

Canned responses lie in the run's store as the score stage leaves them; what comes of them is committed row group by row
group, then as JSONL, parquet and card. BENCH_MILLION=1 also selects from 1,000,000 rows of 0.5 KB (about 8 GB of disk).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import canned
from benchmarks.measuring import Table

STAGES = """
import dataclasses, importlib, json, sys, time
from itertools import islice
from pathlib import Path

import canned
from rounds import context

from nemo_sdg.stages import assemble, select
from nemo_sdg.store import StageStore

# They are paid once by a process, however many rows come.
for name in ("sklearn.linear_model", "sklearn.model_selection", "scipy.sparse", "pyarrow.parquet", "rensa"):
    importlib.import_module(name)

folder, count, size, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rules = canned.RULES | canned.evaluation_files(folder)
words = [f"select.{key}={json.dumps(value)}" for key, value in rules.items()]
words += ["data.validation_share=0.05", "generate.group_size=1000"]
where = dataclasses.replace(context(folder, *words), rules=(canned.own_rule,))
store, rows = StageStore(where.folder / "scored", "canned", count, 1000), canned.rows(count, size)
for group in store.groups:
    store.commit(group, list(islice(rows, group.stop - group.start)))
store.finish({"rows_in": count, "kept": count})
del rows


def memory(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024


before = memory("VmRSS")
told = {}
for name, stage in (("select", select), ("assemble", assemble)):
    began = time.process_time(), time.perf_counter()
    totals = stage.run(where)
    told[name] = {"processor": time.process_time() - began[0], "clock": time.perf_counter() - began[1]}
    told[name] |= {"peak": memory("VmHWM") - before, "totals": totals}
    if name == last:
        break
print("TOLD" + json.dumps(told))
"""


def run_stages(folder: Path, count: int, size: int = 4096, last: str = "assemble") -> dict:
    """What each stage took, in a process of its own: seconds of processor and clock, bytes above the imports."""
    folder.mkdir()
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests.parent, tests, tests / "stages")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", STAGES, str(folder), str(count), str(size), last]
    told = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "TOLD" in told.stdout, told.stdout[-2000:] + told.stderr[-2000:]
    return json.loads(told.stdout.split("TOLD")[1])


def test_rows_per_second_and_memory(tmp_path: Path):
    table = Table("scored responses to datasets, every rule on, rows of 4 KB, one process")
    count, rates = 20_000, []
    for turn in range(3):  # the machine may do other things, too
        told = run_stages(tmp_path / str(turn), count)
        rates.append((sum(stage["processor"] for stage in told.values()), turn, told))
    seconds, _, told = min(rates)
    clock = sum(stage["clock"] for stage in told.values())
    table.add(f"{count:,} rows, rows/s and core, best of three", f"{count / seconds:,.0f}", ">= 2,000")
    table.add("  the same by the clock, syncing the disk included", f"{count / clock:,.0f}")
    for name, stage in told.items():
        table.add(f"  {name}, microseconds of processor a row", f"{stage['processor'] / count * 1e6:,.0f}")
    made = {kind: totals["rows"] for kind, totals in told["assemble"]["totals"].items()}
    assert told["select"]["totals"]["rows_in"] == count and made["sft"]["train"] > count / 2
    assert made["reward"]["train"] + made["reward"]["validation"] > 0.9 * count and made["preference"]["train"]
    runs = [(10_000, 4096, "assemble"), (100_000, 4096, "assemble")]
    million = bool(os.environ.get("BENCH_MILLION"))
    runs += [(100_000, 512, "select"), (1_000_000, 512, "select")] if million else []
    peaks = {}
    for rows, size, last in runs:
        peaks[rows, size] = peak = run_stages(tmp_path / f"{rows}-{size}", rows, size, last)[last]["peak"]
        what = f"peak memory above the imports, {rows:,} rows of {size:,} bytes up to {last}, MB"
        table.add(what, f"{peak / 1e6:,.0f}")
    pairs = [((10_000, 4096), (100_000, 4096))] + ([((100_000, 512), (1_000_000, 512))] if million else [])
    for few, many in pairs:
        each = (peaks[many] - peaks[few]) / (many[0] - few[0])
        what = f"  memory from {few[0]:,} to {many[0]:,} rows of {few[1]:,} bytes, bytes a row"
        table.add(what, f"{each:,.0f}", "<= 1,024")
        assert each <= 1024
    table.show()
