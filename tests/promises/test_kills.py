"""Bar 1: sixty SIGKILLs at seeded moments over four topologies, continued there or at another DP size."""

from __future__ import annotations

import random
import shutil
from collections import Counter

import kills
import pytest
from openai_server import serving
from synthesis_world import reply

from nemo_sdg.config import Topology

KILLS = 15
"""For each of four topologies."""
PROMPT_KILLS = 12
PROMPT_KINDS = {"open_qa": 6, "two_turn": 4, "math": 3, "instruction_following": 5}
seen: list[dict] = []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of undisturbed runs, by TP x PP and dtype."""
    made: dict[tuple, dict[str, bytes]] = {}

    def rows(topology: Topology, *words: str) -> dict[str, bytes]:
        key = topology.tp, topology.pp, words
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            alone = Topology(tp=topology.tp, pp=topology.pp, dp=1)
            made[key] = kills.finish(kills.settings(*words), folder / "run", alone)
        return made[key]

    return rows


def killed_and_continued(folder, whole, topology, then, victim, chance, *words) -> kills.Kill:
    config, out = kills.settings(*words), folder / "run"
    killed = kills.kill(config, out, topology, victim, chance)
    assert kills.finish(config, out, then) == whole(topology, *words), killed
    assert kills.redone(out, killed) == [] and kills.missing_and_double(out) == (0, 0), killed
    assert not list(out.rglob("*.tmp*"))
    shutil.rmtree(folder)
    return killed


@pytest.mark.parametrize("name", kills.TOPOLOGIES)
def test_kills(name, whole, tmp_path):
    chance, topology = random.Random(name), kills.TOPOLOGIES[name]
    other = Topology(tp=topology.tp, pp=topology.pp, dp=3 - topology.dp)
    for number in range(KILLS):
        victim = kills.VICTIMS[number % 3]
        # Every third at another number of replicas; four ranks share the two cores then.
        then = other if number % 3 == 2 else topology
        (folder := tmp_path / str(number)).mkdir()
        killed = killed_and_continued(folder, whole, topology, then, victim, chance)
        seen.append({"topology": name, "killed": killed, "moved": then is other})
    assert sum(one["topology"] == name for one in seen) == KILLS


def test_in_fp64_at_another_tp_and_pp(whole, tmp_path):
    chance = random.Random("fp64")
    words = ("models.dtype=fp64",)
    alone, tp2, pp2 = Topology(dp=1), Topology(tp=2, dp=1), Topology(pp=2, dp=1)
    assert whole(alone, *words) == whole(tp2, *words) == whole(pp2, *words)
    moves = [(alone, tp2), (tp2, pp2), (pp2, alone), (tp2, alone), (alone, pp2), (pp2, tp2)]
    for number, (topology, then) in enumerate(moves):
        (folder := tmp_path / str(number)).mkdir()
        killed_and_continued(folder, whole, topology, then, kills.VICTIMS[number % 3], chance, *words)
    count = len(moves)
    print(f"\nBAR 1: {count}/{count} killed in fp64, continued at another TP x PP / {count}/{count}")


def answered(request: dict) -> dict:
    message = {"role": "assistant", "content": reply(request["messages"])}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice]}


def test_while_the_policy_makes_the_prompts(tmp_path):
    """A program answers over HTTP and judges; the tiny reward model scores what it can read, the rest is set aside."""
    moments = ("prompts/answers-*/part-*", "prompts/part-*", "responses/part-*", "scored/part-*")
    moments, moves = (*moments, "judged/answers/part-*", "judged/part-*"), (1, 2)
    chance, counts = random.Random("prompts"), Counter()
    with serving(answer=answered) as server:
        words = ["generate.backend=endpoint", f"generate.endpoint.url={server.url}", "generate.group_size=2"]
        words += ["data.synthesis.brief=package:conf/briefs/finance.yaml", "data.synthesis.topics=4", "select.minimum={}"]
        words += [f"data.synthesis.kinds.{kind}={count}" for kind, count in PROMPT_KINDS.items()]
        config = kills.settings(*words)
        undisturbed = kills.finish(config, tmp_path / "whole", Topology(dp=1))
        for moment in moments:
            assert list((tmp_path / "whole/round-0").glob(moment)), moment
        for number in range(PROMPT_KILLS):
            out, dp = tmp_path / str(number) / "run", moves[number % 2]
            killed = kills.kill(config, out, Topology(dp=dp), kills.VICTIMS[number % 3], chance, moments)
            assert kills.finish(config, out, Topology(dp=3 - dp)) == undisturbed, killed
            assert kills.redone(out, killed) == [] and kills.missing_and_double(out) == (0, 0), killed
            counts[killed.moment] += 1
    print(f"\n{dict(counts)}")
    print(f"BAR 1: {counts.total()}/{PROMPT_KILLS} killed while prompts are made, answered and judged, continued at another DP size")


def test_there_were_sixty():
    total, killed = len(seen), [one["killed"] for one in seen]
    print(f"\n{dict(Counter(one.victim for one in killed))}, {dict(Counter(one.moment for one in killed))}")
    moved = sum(one["moved"] for one in seen)
    print(f"{moved} continued at another DP size; parts made again 0; rows missing 0, double 0")
    print(f"the job had ended {max(one.ended_after_s for one in killed):.1f} s after the kill at the latest; 0 orphans")
    print(f"BAR 1: {total}/60 killed runs end with the bytes of the undisturbed one / 60/60")
    assert total == 60
