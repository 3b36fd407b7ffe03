"""Ranks and commands are forked from this process, so it must never start a pool of OpenMP threads.

A child that uses such a pool waits for threads which the fork did not copy. Read when torch is first imported.
"""

import gc
import os
import sys

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"

# A collection goes through all that NeMo's import has made, in each of thousands of forks.
gc.set_threshold(50_000, 20, 20)

# How long one example takes says nothing on a machine that runs other things too.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

LONGEST = (
    "test_fit.py", "test_hub.py", "test_loop.py", "test_promises.py", "test_restart.py", "test_slurm.py", "test_target.py",
    "test_torchrun.py", "test_validation.py",
)  # fmt: skip
"""Files that take half a minute or more; they come first, so that no process ends with one while the others rest."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def nobody_does_anything():
    """What a test did when it was ended by an error still stands, for the report of the error; not for the next test."""
    yield
    watch = sys.modules.get("nemo_sdg.parallel.watch")
    if watch is not None:
        watch._phases.clear()
