"""A mistake that rank 0 finds is raised on every rank, with the same words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rounds import context

from nemo_sdg.errors import CheckpointError, UserError
from nemo_sdg.parallel.phases import Phase, Phases
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.stages import train
from nemo_sdg.store import commit_json
from nemo_sdg.store.fits import fits


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


def test_a_model_trained_beside_a_server_runs_where_it_was_trained(tmp_path: Path):
    url = "generate.endpoint.url=http://127.0.0.1:1/v1"
    served = context(tmp_path, "generate.backend=endpoint", url)
    asking, scoring = Phase(Grid(), None), Phase(Grid(first=1), None)
    served = replace(served, phases=Phases(asking, scoring, asking))
    assert served.place(served.role("policy")) is asking and served.role("policy").backend == "endpoint"
    assert served.place(served.local("policy", tmp_path)).mesh is served.mesh
    assert served.place(served.local("reward", tmp_path)) is scoring


def test_a_reward_model_starts_from_the_policy_of_its_round_whatever_a_gate_says_of_that_later(tmp_path: Path):
    where = context(tmp_path, "reward.start_from=policy")
    (policy := where.folder / "policy").mkdir(parents=True)
    reward = next(fit for fit in fits(where.config) if fit.folder == "reward")
    assert train._start(where, reward, None) == policy
    commit_json(where.folder / "evaluation.json", {"gate": {"policy": {"accepted": False}}})
    assert where.trained("policy", 0) is None and train._start(where, reward, None) == policy
    untrained = context(tmp_path, "reward.start_from=policy", "sft.enabled=false")
    assert train._start(untrained, reward, None) == "nowhere"
