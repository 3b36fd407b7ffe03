"""One world for all tests of this folder, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_ranks

from training import worlds


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.model, base/ and the rows of all tasks."""
    # NeMo, imported once, before any rank is forked.
    from nemo_sdg.training import nemo  # noqa: F401  # isort: skip
    import nemo_sdg.training.trainer  # noqa: F401

    folder = tmp_path_factory.mktemp("training")
    worlds.write_tokenizer(folder / "tokenizer.model")
    run_ranks(worlds.write_start, folder / "base", folder / "tokenizer.model")
    worlds.write_rows(folder / "sft.jsonl", worlds.sft_rows(37))
    worlds.write_rows(folder / "reward.jsonl", worlds.reward_rows(37))
    worlds.write_rows(folder / "pairs.jsonl", worlds.pair_rows(37))
    return folder
