"""A rank that dies, or stands still, while a run is under way; `make promises` does both in every phase."""

from __future__ import annotations

import signal

import pytest
from phases import check, hit
from small_run import make_inputs, small_config, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from nemo_sdg.training import nemo  # noqa: F401  (once, before the ranks are forked)

    inputs = make_inputs(tmp_path_factory.mktemp("inputs"))
    return write_recipe(inputs / "small.yaml", small_config(inputs, rounds=1))


@pytest.mark.parametrize("phase, number", [("generation", signal.SIGKILL), ("saving", signal.SIGKILL)])
def test_it_is_named_with_what_it_did(recipe, tmp_path, phase, number):
    check(hit(recipe, tmp_path / "run", phase, number), tmp_path / "run", phase, number)
