"""A rank that has lost the first node ends its torchrun, with the other ranks that it has started; and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

LOST = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
if os.environ["RANK"] == "0":
    while not (folder / "rank-1").exists():
        time.sleep(0.05)
    from nemo_sdg.parallel import watch
    watch.end_launcher()
time.sleep(60)
"""


def test_torchrun_and_its_other_ranks_end_with_the_one_that_lost_the_first_node(tmp_path):
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        assert job.wait(60) == -signal.SIGKILL
    first, other = (int((tmp_path / f"rank-{rank}").read_text()) for rank in (0, 1))
    try:
        deadline = time.monotonic() + 5
        while psutil.pid_exists(other) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not psutil.pid_exists(other)
        assert psutil.pid_exists(first), "who ends the launcher still has to say why"
    finally:
        if psutil.pid_exists(first):
            os.kill(first, signal.SIGKILL)


def test_a_parent_that_is_no_torchrun_is_left_alone(tmp_path):
    """A shell whose words speak of torch, in a job that has torchrun's variable."""
    code = "from nemo_sdg.parallel import watch; watch.end_launcher()"
    command = f"{sys.executable} -c '{code}'; echo torchrun lives > {tmp_path}/said"
    done = subprocess.run(["bash", "-c", command], env={**os.environ, "TORCHELASTIC_RUN_ID": "x"}, check=False)
    assert done.returncode == 0 and Path(tmp_path, "said").read_text() == "torchrun lives\n"
