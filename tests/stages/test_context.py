"""A mistake that rank 0 finds is raised on every rank, with the same words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rounds import context

from nemo_sdg.errors import CheckpointError, UserError


def test_all_ranks_get_the_answer_or_the_mistake(tmp_path: Path):
    sent: list[str] = []
    writer = SimpleNamespace(writer=True, broadcast_object=lambda obj: sent.append(json.dumps(obj)) or obj)
    reader = SimpleNamespace(writer=False, broadcast_object=lambda obj: json.loads(sent.pop()))
    first, second = (replace(context(tmp_path), mesh=mesh) for mesh in (writer, reader))
    assert first.on_writer(lambda: {"n": 3}) == second.on_writer(lambda: pytest.fail("ran on a reader")) == {"n": 3}

    def mistake() -> dict:
        raise CheckpointError("no weights", where=Path("/a"), found=3, way_out="look elsewhere")

    said = []
    for rank in (first, second):
        with pytest.raises(UserError) as caught:
            rank.on_writer(mistake)
        assert type(caught.value) is CheckpointError
        said.append(str(caught.value))
    assert said[0] == said[1] == "/a: no weights, found 3; look elsewhere"
