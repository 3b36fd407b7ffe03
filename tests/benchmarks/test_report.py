"""What `nemo-sdg report` takes on a run of 100,000 rows of 1 KB, which its page has as numbers, all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice

import canned
from benchmarks.measuring import Table
from rounds import context

from nemo_sdg.stages import select
from nemo_sdg.store import Run, StageStore

ROWS = 100_000
REPORT = """
import json, resource, sys, time
from nemo_sdg import cli
began = time.process_time(), time.perf_counter()
assert cli.main(["report", sys.argv[1]]) == 0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("TOLD" + json.dumps([time.process_time() - began[0], time.perf_counter() - began[1], peak / 1024]))
"""


def test_a_page_of_many_rows(tmp_path):
    where = context(tmp_path, "generate.group_size=512", "run.rounds=1")
    Run.open(where.run.out, where.config, writer=True).close()
    store, rows = StageStore(where.folder / "scored", "canned", ROWS, 512), canned.rows(ROWS, 1000)
    for group in store.groups:
        store.commit(group, list(islice(rows, group.stop - group.start)))
    store.finish({"rows_in": ROWS, "kept": ROWS})
    select.run(where)
    words = [sys.executable, "-c", REPORT, str(where.run.out)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    processor, clock, peak = json.loads(said.rpartition("TOLD")[2])
    size = (where.run.out / "report.html").stat().st_size
    table = Table(f"nemo-sdg report of {ROWS:,} rows of 1 KB")
    table.add("seconds by the processor's time", f"{processor:.1f}", "some seconds")
    table.add("seconds by the clock", f"{clock:.1f}")
    table.add("MiB at the peak", f"{peak:.0f}")
    table.add("MB of the page", f"{size / 1e6:.1f}")
    table.show()
