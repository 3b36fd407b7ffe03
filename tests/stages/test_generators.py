"""Several generators: two local models and a server answer the same prompts, one after the other, and make pairs."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from folders import make_folder, make_tokenizer, small_shape
from kills import Job
from openai_server import reply_to, serving
from ranks import run_ranks
from small_run import row_files
from test_placement import rounds

from nemo_sdg import fork, plan, tracing
from nemo_sdg.config import (
    Data,
    Endpoint,
    Generate,
    Models,
    Preference,
    RewardTraining,
    RunConfig,
    Select,
    Topology,
    Training,
    identity,
)
from nemo_sdg.config.endpoints import other_server, without_addresses
from nemo_sdg.console import Console
from nemo_sdg.engine import residents
from nemo_sdg.errors import CheckpointError, ConfigError, StoreError, UserError
from nemo_sdg.records import Decision
from nemo_sdg.store import Run, StageStore
from nemo_sdg.store.verifying import verify_run

PROMPTS, OWN, SECOND, SERVER = 10, 2, 1, 2
ALL = OWN + SECOND + SERVER


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("generators")
    tokenizer = make_tokenizer(root / "t.model")
    for name, reward, seed in (("policy", False, 1), ("second", False, 5), ("reward", True, 2)):
        make_folder(root / name, small_shape(), tokenizer, reward=reward, seed=seed)
    rows = [{"id": f"p{i}", "prompt": f"{'abcdefgh'[i % 8]}{i}"} for i in range(PROMPTS)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def server():
    with serving() as told:
        yield told


def settings(root: Path, url: str, placement: str = "in_turn", **generate) -> RunConfig:
    others = {f"{root}/second": SECOND, f"{url}#policy": SERVER}
    return RunConfig(
        models=Models(instruct=f"{root}/policy", reward=f"{root}/reward", dtype="fp64", placement=placement),
        generate=Generate(**{
            "samples": OWN, "others": others, "max_tokens": 9, "slots": 4, "prefill_tokens": 64, "group_size": 3,
            "endpoint": Endpoint(concurrency=2, retries=0), **generate,
        }),
        preference=Preference(margin=0.0, per_prompt=2), select=Select(minimum={}),
        data=Data(prompts=f"{root}/prompts.jsonl"), sft=Training(enabled=False), reward=RewardTraining(enabled=False),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(inputs, server, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run_ranks(rounds, settings(inputs, server.url), out)
    return out


def rows(out: Path, name: str) -> list[dict]:
    return list(StageStore.finished(out / "round-0" / name).read())


def maker(row: dict) -> str:
    return row["provenance"]["policy"]


def test_each_generator_answers_each_prompt_as_often_as_was_asked(finished, server):
    made = rows(finished, "responses")
    assert Counter(row["id"] for row in made) == {f"p{p}#{s}": 1 for p in range(PROMPTS) for s in range(ALL)}
    by_maker = {name: {row["sample"] for row in made if maker(row) == name} for name in map(maker, made)}
    own, second, asked = by_maker
    assert asked == "endpoint:policy" and len({own, second}) == 2 and len(own) == len(second) == 16
    assert list(by_maker.values()) == [{0, 1}, {2}, {3, 4}]
    requests = {json.dumps([one["messages"][-1]["content"], one["seed"]]): one for one in server.asked}
    for row in made:
        if maker(row) == asked:
            seed = int(row["response"].split(" -> ")[1])
            assert row["response"] == reply_to(requests[json.dumps([row["messages"][-1]["content"], seed])])
    totals = StageStore.finished(finished / "round-0/responses").totals
    assert totals["rows_in"] == totals["kept"] == PROMPTS * ALL
    assert totals["by_generator"] == {own: PROMPTS * OWN, second: PROMPTS * SECOND, asked: PROMPTS * SERVER}


def test_a_generator_has_random_streams_of_its_own(inputs, server, finished, tmp_path):
    """A copy of the policy beside it does not say the same again."""
    config = settings(inputs, server.url, others={f"{inputs}/policy": 2})
    run_ranks(rounds, config, tmp_path / "run")
    texts = {row["id"]: row["response"] for row in rows(tmp_path / "run", "responses")}
    assert any(texts[f"p{p}#0"] != texts[f"p{p}#2"] for p in range(PROMPTS))
    alone = settings(inputs, server.url, samples=4, others={})
    run_ranks(rounds, alone, tmp_path / "alone")
    assert {row["id"]: row["response"] for row in rows(tmp_path / "alone", "responses")} == texts


def test_what_belongs_to_a_prompt_lies_in_neighbouring_parts(finished):
    """So that whoever joins a prompt's rows need not hold those of the whole round."""
    for name in ("responses", "scored"):
        store = StageStore.finished(finished / "round-0" / name)
        assert [(group.start, group.turn) for group in store.groups] == [(s, t) for s in (0, 3, 6, 9) for t in range(3)]
        counts = [OWN, SECOND, SERVER]
        assert [len(store.rows_of(g)) for g in store.groups] == [(g.stop - g.start) * counts[g.turn] for g in store.groups]


def test_pairs_are_made_of_two_generators_answers(finished):
    decided = {row["id"]: row for row in rows(finished, "decisions")}
    lines = [json.loads(line) for line in (finished / "round-0/datasets/preference.jsonl").read_text().splitlines()]
    sides = [[maker(decided[name]) for name in line["id"].split(">")] for line in lines]
    assert any(better != worse for better, worse in sides), sides
    assert all(Decision.from_row(decided[line["id"].split(">")[0]]).kept for line in lines)


@pytest.mark.parametrize("ranks", [{"dp": 2}, {"tp": 2}, {"dp": 3}], ids=["dp2", "tp2", "dp3"])
def test_the_same_bytes_on_any_ranks(inputs, server, finished, tmp_path, ranks):
    before = len(server.asked)
    run_ranks(rounds, settings(inputs, server.url), tmp_path / "run", **ranks)
    assert row_files(tmp_path / "run") == row_files(finished)
    assert len(server.asked) - before == PROMPTS * SERVER, "one rank asks the server"


@pytest.mark.parametrize("placement, world", [("together", 1), ("split", 2)])
def test_the_same_bytes_in_every_placement(inputs, server, finished, tmp_path, placement, world):
    run_ranks(rounds, settings(inputs, server.url, placement), tmp_path / "run", dp=world)
    assert row_files(tmp_path / "run") == row_files(finished)


def test_one_local_model_is_held_at_a_time_and_loaded_once(inputs, server, tmp_path):
    def watched(mesh) -> list[str]:
        loaded, load = [], residents.load_model
        take = residents.Residents.take

        def counting(path, *args, **kwargs):
            loaded.append(Path(path).name)
            return load(path, *args, **kwargs)

        def taking(self, *args, **kwargs):
            found = take(self, *args, **kwargs)
            assert len(self._held) == 1
            return found

        residents.load_model, residents.Residents.take = counting, taking
        rounds(mesh, settings(inputs, server.url), tmp_path / "run")
        return loaded

    assert run_ranks(watched)[0] == ["policy", "second", "reward"]


@pytest.mark.parametrize("turn", range(3))
def test_killed_while_any_of_them_answers_it_goes_on(inputs, server, finished, tmp_path, turn):
    """SIGKILL when the second part of a generator has appeared; what is there is not made again."""
    config, out = settings(inputs, server.url), tmp_path / "run"
    server.latency_s = 0.05
    job = Job.start(config, out, Topology(dp=1))
    wanted = f"part-{3 + turn:05d}-*"
    while job.runs() and not list(out.glob(f"round-0/responses/{wanted}")):
        pass
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL, job.log()[-2000:]
    server.latency_s = 0.0
    there = {file: file.stat().st_ino for file in out.glob("round-0/responses/part-*")}
    assert there and not (out / "round-0/responses/SUCCESS.json").exists()
    run_ranks(rounds, config, out, dp=2)
    assert row_files(out) == row_files(finished)
    assert {file: file.stat().st_ino for file in there} == there


def test_a_row_is_traced_back_to_its_generator_and_the_run_is_whole(finished, capsys):
    assert verify_run(finished, Console(io.StringIO())) == []
    lines = (finished / "round-0/datasets/preference.jsonl").read_text().splitlines()
    assert tracing.verify_row(finished, json.loads(lines[0])["id"]) == 0
    assert tracing.verify_row(finished, "p1#3") == 0
    said = capsys.readouterr().out
    assert "policy endpoint:policy" in said and "the same" in said and "differs" not in said


def test_another_generator_is_another_run_and_fork_generates_again(inputs, server, finished, tmp_path):
    more = settings(inputs, server.url, others={f"{inputs}/second": SECOND})
    with pytest.raises(StoreError, match="generate.others"):
        Run.open(finished, more, writer=True)
    steps = {step.name: step.reused for step in fork.plan(finished, settings(inputs, server.url), more)}
    assert steps["prompts"] and not steps["responses"] and not steps["scored"]


def test_a_server_may_move_while_a_run_goes_on(inputs, server, finished, tmp_path):
    """Its name and what it says that it serves stay; its address is in no row, no name and no card."""
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(out / "round-0/datasets")
    for file in out.glob("round-0/responses/part-00005*"):
        file.unlink()
    with serving() as moved:
        config = settings(inputs, moved.url)
        assert identity(config) == identity(settings(inputs, server.url))
        run_ranks(rounds, config, out)
        assert len(moved.asked) == 3 * SERVER and moved.url in (out / "run.yaml").read_text()
        assert row_files(out) == row_files(finished)
        card = (out / "round-0/datasets/README.md").read_text()
        assert "`http://server-1.invalid/v1#policy`, 2 to each prompt" in card and moved.url not in card
        assert verify_run(out, Console(io.StringIO())) == []
        assert all(step.reused for step in fork.plan(finished, settings(inputs, server.url), config))


def test_a_server_that_serves_another_model_is_another_generator(inputs, server, finished, tmp_path):
    another = settings(inputs, server.url, others={f"{inputs}/second": SECOND, f"{server.url}#another": SERVER})
    assert identity(another) != identity(settings(inputs, server.url))
    unnamed = {f"{inputs}/second": SECOND, server.url: SERVER}
    run_ranks(rounds, settings(inputs, server.url, others=unnamed), tmp_path / "run")

    def refused(mesh):
        with serving(models={"another": "somebody"}) as moved:
            config = settings(inputs, moved.url, others={f"{inputs}/second": SECOND, moved.url: SERVER})
            with pytest.raises(StoreError, match="responses: the stage was made with another fingerprint"):
                rounds(mesh, config, tmp_path / "run")

    run_ranks(refused)


def test_two_servers_of_one_model_stay_two():
    both = {"http://a/v1#m": 1, "folder": 2, "HTTPS://b/v1": 3}
    assert without_addresses(both) == {"http://server-1.invalid/v1#m": 1, "folder": 2, "http://server-2.invalid/v1": 3}
    assert without_addresses({"http://a/v1#m": 1, "http://b/v1#m": 1}).keys() == {
        "http://server-1.invalid/v1#m", "http://server-2.invalid/v1#m"
    }  # fmt: skip


def test_a_server_that_is_not_there_is_said_before_anything_is_generated(inputs, tmp_path):
    with serving() as gone:
        url = gone.url
    config = settings(inputs, url)

    def refused(mesh):
        with pytest.raises(UserError, match="generate.others"):
            rounds(mesh, config, tmp_path / "run")

    run_ranks(refused)
    assert not list((tmp_path / "run/round-0").glob("responses/part-*"))


@pytest.mark.parametrize(
    "name, samples, told",
    [
        ("", 1, "no name"),
        ("second", 0, "at least 1"),
        ("http://user:word@host/v1", 1, "holds a name or password"),
        ("http://host/v1?key=word", 1, "more than an address"),
        ("http://", 1, "no base URL"),
        ("http://host/v1#", 1, "has no name"),
        ("http://host:port/v1", 1, "no base URL"),
    ],
)
def test_entries_that_can_be_no_generator_are_refused(name, samples, told):
    from nemo_sdg.config import validate

    with pytest.raises(ConfigError, match=told) as caught:
        validate(RunConfig(generate=Generate(others={name: samples})))
    assert "generate.others" in str(caught.value) and "word" not in str(caught.value).replace("password", "")


def test_a_folder_that_is_none_or_a_reward_model_is_refused_by_the_plan(inputs, server, tmp_path):
    for folder in (tmp_path / "nowhere", inputs / "reward"):
        with pytest.raises((CheckpointError, ConfigError), match=folder.name):
            plan.make(settings(inputs, server.url, others={str(folder): 1}), world=1)
    made = plan.make(settings(inputs, server.url), world=1)
    assert made.responses == PROMPTS * ALL and [model.role for model in made.models] == ["generate", "generate 2", "score"]
    assert any(server.url in note for note in made.notes)


def test_a_key_goes_to_the_address_that_it_was_given_for(inputs, server, tmp_path, monkeypatch):
    generate = Generate(endpoint=Endpoint(url="http://one:1/v1", key_env="SECRET"))
    assert other_server("http://one:1/v1#another", generate) == Endpoint(
        url="http://one:1/v1", model="another", key_env="SECRET"
    )
    assert other_server("https://two.example.org/v1", generate).key_env == "SECRET_TWO_EXAMPLE_ORG"
    assert other_server("some/folder", generate) is None
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-you")
    port = server.url.split(":")[2].split("/")[0]
    for name, sent in (("", None), (f"OPENAI_API_KEY_127_0_0_1_{port}", "Bearer for-you")):
        if name:
            monkeypatch.setenv(name, "for-you")
        server.keys.clear()
        run_ranks(rounds, settings(inputs, server.url), tmp_path / f"run{name}")
        assert "Bearer not-for-you" not in server.keys and (sent is None or set(server.keys) == {sent})


def test_a_server_as_the_policy_and_a_local_model_beside_it(inputs, server, tmp_path):
    """The local one runs on the ranks of the job, which one rank alone asks the server from."""
    config = settings(
        inputs, server.url, backend="endpoint", others={f"{inputs}/second": 1},
        endpoint=Endpoint(url=server.url, model="policy", retries=0),
    )  # fmt: skip
    for name, ranks in (("one", {}), ("two", {"tp": 2})):
        run_ranks(rounds, config, tmp_path / name, **ranks)
    assert row_files(tmp_path / "one") == row_files(tmp_path / "two")
    assert Counter(map(maker, rows(tmp_path / "one", "responses")))["endpoint:policy"] == PROMPTS * OWN
