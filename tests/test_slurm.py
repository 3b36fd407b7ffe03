"""examples/slurm/: the scripts as they are, with an srun and an scontrol that play Slurm on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import stops
from processes import ROOT, free_port
from small_run import make_inputs, row_files, small_config, write_recipe

SLURM = ROOT / "examples/slurm"
SCRIPTS = [SLURM / "run.sbatch", SLURM / "node.sh"]
LIMIT_S = 400
SRUN = """#!/bin/bash
# Two nodes on this machine: the words that are no options, once for each.
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do
    SLURM_NODEID=$node SLURM_PROCID=$node "$@" & echo $! >> "$STATE/nodes"
    pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do wait "$pid" || worst=$?; done
exit $worst
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") printf '127.0.0.1\\n127.0.0.2\\n' ;;
    "requeue $SLURM_JOB_ID") echo "$2" >> "$STATE/requeued" ;;
    *) echo "scontrol: $*" >&2; exit 1 ;;
esac
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_shell_can_read_it(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--severity=warning", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_options_ask_for_what_the_script_counts_on():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", SCRIPTS[0].read_text(), flags=re.MULTILINE))
    assert options["signal"] == "USR1@300" and "requeue" in options and options["ntasks-per-node"] == "1"


def test_a_job_is_told_to_stop_and_queued_again_and_finishes_the_run(tmp_path):
    inputs = make_inputs(tmp_path)
    config = small_config(inputs, rounds=1)
    config.sft.enabled = config.reward.enabled = False
    config.generate.samples, config.generate.max_tokens, config.generate.slots = 12, 32, 2
    recipe, out = write_recipe(inputs / "small.yaml", config), tmp_path / "run"
    state = tmp_path / "state"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = state / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)

    def start(count: int) -> subprocess.Popen:
        (state / "nodes").unlink(missing_ok=True)
        (state / "requeued").unlink(missing_ok=True)
        job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "two", "SLURM_JOB_NUM_NODES": "2", "PORT": str(free_port())}
        job |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_RESTART_COUNT": str(count), "RANKS_PER_NODE": "1"}
        job |= {"STATE": str(state), "PATH": f"{state}/bin:{os.environ['PATH']}", "PYTHON": sys.executable}
        job |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
        words = ["bash", str(SCRIPTS[0]), str(recipe), str(out), "topology.dp=2"]
        return subprocess.Popen(
            words, env={**os.environ, **job}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def finish(job: subprocess.Popen) -> str:
        try:
            return job.communicate(timeout=LIMIT_S)[0]
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)

    first = start(0)
    until = time.monotonic() + LIMIT_S
    while not list(out.glob("round-0/responses/part-*")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    for node in (state / "nodes").read_text().split():  # as Slurm does: to what it has started on each node
        os.kill(int(node), signal.SIGUSR1)
    text = finish(first)
    assert first.returncode == 75, text
    assert (state / "requeued").read_text() == "4711\n" and "the job is queued again" in text
    assert "told to stop (SIGUSR1)" in text and text.count("nemo-sdg: ") == 1
    assert not list(tmp_path.glob("nemo-sdg-4711-*")), "scratch is left behind"
    before = stops.groups(out)
    second = start(1)
    text = finish(second)
    assert second.returncode == 0, text
    assert not (state / "requeued").exists() and not (out / "logs/stopped.json").exists()
    now = stops.groups(out)
    assert before and {name: now.get(name) for name in before} == before
    done = stops.start(recipe, tmp_path / "straight", "topology.dp=2")
    assert done.returncode == 0, done.stderr
    assert row_files(out) == row_files(tmp_path / "straight")


def test_a_job_that_fails_is_not_queued_again(tmp_path):
    """No node can even start: the script ends with that status."""
    for name, text in (("srun", "#!/bin/bash\nexit 3\n"), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "run"
    (out / "logs").mkdir(parents=True)
    (out / "logs/stopped.json").write_text("of an earlier start")
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "two", "SLURM_SUBMIT_DIR": str(ROOT), "STATE": str(tmp_path)}
    done = subprocess.run(
        ["bash", SCRIPTS[0], "tiny", out], env={**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3 and not (tmp_path / "requeued").exists()
