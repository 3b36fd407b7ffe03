"""Stages over servers: one plain process and no model, servers beside local models, and what goes into the rows."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest
from folders import make_folder, make_tokenizer, small_shape
from openai_server import completion, reply_to, scores_of, serving
from ranks import run_ranks
from small_run import row_files
from test_placement import rounds

from nemo_sdg.config import (
    Data, Endpoint, Evaluate, Generate, Models, PhaseTopology, RewardTraining, RunConfig, Score, Select, Training
)  # fmt: skip
from nemo_sdg.engine import residents
from nemo_sdg.errors import RowError, UserError
from nemo_sdg.store import StageStore

MODELS = {"policy": "somebody", "judge": "somebody"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("backends")
    tokenizer = make_tokenizer(root / "t.model")
    make_folder(root / "policy", small_shape(), tokenizer, seed=1)
    make_folder(root / "reward", dataclasses.replace(small_shape(), seq_length=192), tokenizer, reward=True, seed=2)
    rows = [{"id": f"p{i}", "prompt": f"{'abcdefgh'[i % 8]}{i}"} for i in range(10)]
    rows[3]["prompt"] = "<extra_id_1>"
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [{"prompt": "hi", "response": "ho" * (i + 1), **dict.fromkeys(scores_of([]), i)} for i in range(5)]
    (root / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    asked = [{"id": "h", "prompt": "abc", "answer": "abc -> 1"}, {"id": "i", "prompt": "d", "answer": "e"}]
    pairs = [{"prompt": "hi", "chosen": "ho", "rejected": "hum", "subset": name} for name in ("hep-go", "donotanswer")]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (root / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return root


def config(root: Path, placement: str, *, policy: str | None = None, judge: str | None = None) -> RunConfig:
    """Both roles local, or with the URL of a server."""

    def backend(url: str | None, model: str) -> dict:
        endpoint = Endpoint(url=url, model=model, retries=0, concurrency=2)
        return {"backend": "endpoint", "endpoint": endpoint} if url else {}

    return RunConfig(
        models=Models(
            instruct="nowhere" if policy else f"{root}/policy", reward="nowhere" if judge else f"{root}/reward",
            dtype="fp64", placement=placement,
        ),
        generate=Generate(
            samples=2, max_tokens=9, slots=4, prefill_tokens=64, group_size=3, **backend(policy, "policy")
        ),
        score=Score(**backend(judge, "judge")),
        select=Select(minimum={}), data=Data(prompts=f"{root}/prompts.jsonl"), sft=Training(enabled=False), reward=RewardTraining(enabled=False),
        evaluate=Evaluate(
            exact_match=f"{root}/asked.jsonl", helpsteer2=f"{root}/held.jsonl", rewardbench=f"{root}/pairs.jsonl",
            win_rate=f"{root}/asked.jsonl",
        ),
    )  # fmt: skip


def rows(out: Path, name: str) -> list[dict]:
    return list(StageStore.finished(out / "round-0" / name).read())


def test_two_servers_and_one_plain_process_without_any_model(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(residents, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    found, scoring = {}, threading.Event()

    def answer(request: dict) -> dict:
        """The last prompt is answered when something has been scored: one stage after the other would not get there."""
        if request["model"] == "judge":
            scoring.set()
        elif request["messages"][-1]["content"] == "b9":
            assert scoring.wait(30), "nothing was scored while responses were still generated"
        return completion(request, "somebody")

    with serving(models=MODELS) as server:
        for placement in ("in_turn", "together", "split"):
            settings = config(inputs, placement, policy=server.url, judge=server.url)
            server.answer = None if placement == "in_turn" else answer
            run_ranks(rounds, settings, tmp_path / placement)
            found[placement] = row_files(tmp_path / placement)
            assert scoring.is_set() == (placement != "in_turn")
            scoring.clear()
        asked = [request for request in server.asked if request["model"] == "policy"]
        scored = [request for request in server.asked if request["model"] == "judge"]
    assert found["in_turn"] == found["together"] == found["split"]
    assert len(asked) == 3 * (9 * 2 + 2) and len(scored) == 3 * (18 + 5 + 4 + 2)
    by_messages = {json.dumps(request["messages"]): request for request in asked}
    for row in rows(tmp_path / "in_turn", "scored"):
        request = by_messages[json.dumps(row["messages"])]
        assert row["response"] in [reply_to({**request, "seed": one["seed"]}) for one in asked]
        turns = [*row["messages"], {"role": "assistant", "content": row["response"]}]
        assert row["scores"] == pytest.approx(scores_of(turns))
        made_by = {"policy": "endpoint:policy", "reward": "endpoint:judge"}
        assert row["provenance"] == {**made_by, "template": "instruct", "seed": 1234, "round": 0}
    totals = StageStore.finished(tmp_path / "split/round-0/responses").totals
    assert totals["rows_in"] == 18 and totals["kept"] == 18
    evaluation = json.loads((tmp_path / "split/round-0/evaluation.json").read_text())
    assert evaluation["policy"]["n"] == 2 and evaluation["reward"]["helpfulness"]["n"] == 5
    assert evaluation["rewardbench"]["faulty"] == 0 and evaluation["win_rate"]["ties"] == 2  # nothing was trained
    saved = (tmp_path / "split/run.yaml").read_text()
    assert "models.instruct" not in saved and "models.reward" not in saved, "inputs that are none"


@pytest.mark.parametrize("remote", ["policy", "judge"])
@pytest.mark.parametrize("placement", ["in_turn", "together"])
def test_a_server_beside_a_local_model_cut_over_two_ranks(inputs, tmp_path, remote, placement):
    """One rank asks the server; the same rows as on one rank."""
    with serving(models=MODELS) as server:
        settings = config(inputs, placement, **{remote: server.url})
        one, two = tmp_path / "one", tmp_path / "two"
        run_ranks(rounds, settings, one)
        count = len(server.asked)
        phase = settings.score if remote == "policy" else settings.generate
        phase.topology = PhaseTopology(tp=2)
        run_ranks(rounds, settings, two, dp=2)
        assert len(server.asked) == 2 * count, "each row is asked for once, by one rank"
    without = [{name: data for name, data in row_files(out).items() if "evaluation" not in name} for out in (one, two)]
    assert without[0] == without[1] and len(without[0]) > 10
    kinds = {"policy": "endpoint:policy", "judge": "endpoint:judge"}
    provenance = rows(one, "scored")[0]["provenance"]
    assert provenance["policy" if remote == "policy" else "reward"] == kinds[remote]
    assert len(provenance["reward" if remote == "policy" else "policy"]) == 16, "the digest of a folder"


def test_another_server_is_another_run_and_another_address_is_not(inputs, tmp_path):
    with serving(models=MODELS) as server, serving(models=MODELS) as other:
        settings = config(inputs, "in_turn", policy=server.url, judge=server.url)
        settings.generate.endpoint.model = "judge"
        prints = []
        for number, model in enumerate(("policy", "policy", "judge")):
            url = (other if number == 1 else server).url
            settings.generate.endpoint = Endpoint(url=url, model=model, concurrency=3)
            run_ranks(rounds, settings, tmp_path / str(number))
            prints.append(StageStore.finished(tmp_path / str(number) / "round-0/responses").fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("placement", ["in_turn", "together"])
def test_a_server_that_is_gone_is_said_and_the_run_goes_on_later(inputs, tmp_path, placement):
    with serving(models=MODELS) as server:
        settings = config(inputs, placement, policy=server.url, judge=server.url)
        server.refuse = {"b9": (401, "no such key")}

        def refused(mesh):
            with pytest.raises(UserError, match="generate.endpoint"):
                rounds(mesh, settings, tmp_path / "run")

        run_ranks(refused)
        assert not list((tmp_path / "run/round-0").glob("*/part-00003*"))
        server.refuse = {}
        run_ranks(rounds, settings, tmp_path / "run")
    assert len(rows(tmp_path / "run", "scored")) == 18


@pytest.mark.parametrize("placement", ["in_turn", "together"])
def test_a_row_that_a_server_refuses_is_set_aside_or_named_if_strict(inputs, tmp_path, placement):
    lines = (inputs / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[:3] + lines[4:]))
    with serving(models=MODELS, refuse={"c2 ->": (400, "it is too long")}) as server:
        settings = config(inputs, placement, policy=server.url, judge=server.url)
        settings.data.prompts = f"{tmp_path}/prompts.jsonl"
        run_ranks(rounds, settings, tmp_path / "lenient")
        settings.run.strict = True

        def refused(mesh):
            with pytest.raises(RowError, match="row p2#[01]"):
                rounds(mesh, settings, tmp_path / "strict")

        run_ranks(refused)
    totals = StageStore.finished(tmp_path / "lenient/round-0/scored").totals
    assert totals["rows_in"] == 18 and totals["kept"] == 16 and sum(totals["faulty"].values()) == 2
    assert not (tmp_path / "strict/round-0/scored/SUCCESS.json").exists()


def test_strict_names_a_line_of_the_prompts(inputs, tmp_path):
    settings = config(inputs, "in_turn")
    settings.run.strict = True

    def refused(mesh):
        with pytest.raises(RowError, match="prompts.jsonl:4: "):
            rounds(mesh, settings, tmp_path / "run")

    run_ranks(refused)
