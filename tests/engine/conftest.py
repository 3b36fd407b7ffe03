"""Random models of the true architecture, made once for all tests of the engine."""

from __future__ import annotations

import pytest
from folders import make_folder, make_tokenizer, small_shape


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(root / "tokenizer.model")
    return {
        "policy": make_folder(root / "policy", small_shape(), tokenizer),
        "reward": make_folder(root / "reward", small_shape(), tokenizer, reward=True, seed=1),
    }
