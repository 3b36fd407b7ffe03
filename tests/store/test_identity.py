"""A run goes on with its own settings: each other one that decides rows is refused by name. It has one writer."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fields import changed, leaves
from processes import ROOT

from nemo_sdg.config import RunConfig, fingerprint, identity, load, to_yaml
from nemo_sdg.config.evaluating import FILES
from nemo_sdg.errors import StoreError
from nemo_sdg.store import Run

BY_THE_WAY = {
    "models.placement",
    "topology.tp", "topology.pp", "topology.dp", "topology.first_stage_layers", "topology.last_stage_layers", "topology.virtual_stages",
    "topology.sequence_parallel",
    *(f"{phase}.topology.{key}" for phase in ("generate", "score") for key in ("tp", "pp", "dp")),
    *(f"{group}.endpoint.{key}" for group in ("generate", "score", "judge")
      for key in ("url", "key_env", "concurrency", "timeout_s", "retries")),
    "generate.slots", "generate.prefill_tokens", "generate.kv_cache_bytes", "generate.fixed_shape", "score.pack_tokens",
    *(f"{group}.{key}" for group in ("sft", "reward", "preference") for key in ("restart_every", "keep_last")),
    "budget.candidates", "budget.tokens", "budget.hours", "run.rounds", "run.timeout_s", "run.stop_after", "run.threads",
    "run.strict", "run.tensorboard", "run.wandb", "evaluate.ablation", "evaluate.ablation_seeds",
    "keep.models", "keep.intermediate", *(key for key, _ in leaves() if key.startswith(("hardware.", "expect."))),
}  # fmt: skip
"""Where, how fast and how far a run runs. Apart from the code, so that a new field is thought about."""

EMPTY = ("select.maximum", "data.sft", "data.labelled", "data.preference", "data.synthesis.kinds", "select.balance")
EMPTY += ("generate.others",)
"""Groups of names that have none in the tiny recipe."""


@functools.cache
def settings() -> RunConfig:
    """The tiny recipe with inputs that are not there: only names are asked for."""
    names = ("models.base", "models.instruct", "models.reward", "data.prompts", "data.helpsteer2")
    names += tuple(f"evaluate.{name}" for name in FILES)
    return load("tiny", [f"{key}=nowhere" for key in names])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    Run.open(folder, settings(), writer=True).close()
    return folder


@pytest.mark.parametrize("key", [key for key, _ in leaves()])
def test_every_field(key, run):
    config = settings()
    other = changed(config, key)
    if key in BY_THE_WAY:
        assert fingerprint(identity(other)) == fingerprint(identity(config)), f"{key} would make this another run"
        return
    assert fingerprint(identity(other)) != fingerprint(identity(config)), f"{key} may change and nobody notices"
    before = (run / "run.yaml").read_bytes()
    with pytest.raises(StoreError) as caught:
        Run.open(run, other, writer=True)
    told = str(caught.value)
    assert "the folder holds a run of another config" in told and f"{key}" in told and "(run: " in told
    # Of what was empty the entry comes, and the emptiness goes.
    changes = 2 if key in EMPTY else 1
    assert told.count("(run: ") == changes and "choose another --out" in told and f"run.yaml --out {run}" in told
    assert (run / "run.yaml").read_bytes() == before


def test_the_list_names_fields_that_are_there():
    assert BY_THE_WAY <= {key for key, _ in leaves()}


SECOND = """
import sys
from nemo_sdg.cli import main
status = main(["run", sys.argv[1], "--out", sys.argv[2]])
print(status, [name for name in ("torch", "megatron", "nemo", "lightning") if name in sys.modules])
"""


def test_a_second_process_is_refused_before_it_imports_anything_heavy(tmp_path):
    config = load("tiny", [])
    (tmp_path / "recipe.yaml").write_text(to_yaml(config))
    with Run.open(tmp_path / "run", config, writer=True):
        words = [sys.executable, "-c", SECOND, str(tmp_path / "recipe.yaml"), str(tmp_path / "run")]
        second = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert second.stdout.splitlines()[-1] == "2 []", second.stdout + second.stderr
    assert second.stderr.count("\n") == 1
    assert f"the run is in use, found process {os.getpid()} on {os.uname().nodename}" in second.stderr
    assert not Path(tmp_path / "run/logs").exists()
