"""`torchrun -m nemo_sdg serve`: two ranks of one server, its answers and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from processes import ROOT
from serving import POLICY, REWARD

LIMIT_S = 240


@pytest.mark.parametrize("cut", ["--tp", "--pp"])
def test_two_ranks_serve_and_stop(tmp_path, cut):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "nemo_sdg", "serve", *POLICY, *REWARD, cut, "2", "--slots", "8", "--port", "0"]
    terminal = tmp_path / "terminal"
    with open(terminal, "w") as out:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        job = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + LIMIT_S
        while "serving " not in terminal.read_text():
            assert job.poll() is None and time.monotonic() < until, terminal.read_text()
            time.sleep(0.2)
        line = next(line for line in terminal.read_text().splitlines() if line.startswith("serving "))
        with openai.OpenAI(base_url=line.split(" at ")[1].split(";")[0], api_key="none", max_retries=0) as client:
            messages = [{"role": "user", "content": "3 + 4 ="}]
            answers = [
                client.chat.completions.create(model="instruct", messages=messages, seed=1, max_tokens=16)
                for _ in range(2)
            ]
            assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
            turns = [*messages, {"role": "assistant", "content": "7"}]
            judged = client.chat.completions.create(model="reward", messages=turns)
            assert len(judged.choices[0].logprobs.content) == 5
        # To rank 0 alone: torchrun itself would end its ranks as failed ones.
        os.kill(first_rank(job.pid), signal.SIGTERM)
        assert job.wait(60) == 0, terminal.read_text()
        assert terminal.read_text().count("stopped: 3 answered, 0 refused, 0 cancelled") == 1
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def first_rank(launcher: int) -> int:
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"\0RANK=0\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError("there is no rank 0")
