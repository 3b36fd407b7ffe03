"""A thousand rows through a server that misbehaves in every way that it can: each comes once, whole, and its own.

What goes wrong with a request follows from its conversation, its seed and how often it was asked. So the test knows
beforehand what each row costs, and which ones the budget does not carry.
"""

from __future__ import annotations

import random
import time

import pytest
from openai_server import name_of, scores_of, serving

from nemo_sdg.config import Endpoint
from nemo_sdg.engine.backends import Refusal, transport
from nemo_sdg.engine.backends.endpoint import EndpointGenerator, EndpointScorer, seed_of
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.records import Prompt, Response

RATES = {"429": 0.02, "500": 0.06, "503": 0.01, "cut": 0.06, "reset": 0.05, "malformed": 0.06, "error": 0.03}
RATES |= {"shape": 0.02, "late": 0.002}
RETRIES = 3
SAMPLING = Sampling(max_tokens=9, seed=11)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.01)


def costs(server, request: dict) -> tuple[int, str | None]:
    """(requests, what refuses the row) of a row under the budget."""
    for number, fault in enumerate(server.faults_of(name_of(request), RETRIES + 1), start=1):
        if fault is None:
            return number, None
        if fault == "shape":
            return number, "the server's answer has no choices[0]."
    return RETRIES + 1, "the server gave no answer"


def check(server, backend, rows: list, requests: dict[str, dict], began: float) -> dict[str, Response]:
    """Every row that was asked for is there once, refused only where the budget ran out, and cost what it had to."""
    names = [row.id for row in rows]
    assert len(names) == len(set(names)) == 1000 and set(names) == set(requests)
    expected = {name: costs(server, request) for name, request in requests.items()}
    for row in rows:
        why = expected[row.id][1]
        assert isinstance(row, Refusal) == (why is not None), row
        assert why is None or row.error.what.startswith(why)
    assert {name: server.tries[name_of(request)] for name, request in requests.items()} == {
        name: tries for name, (tries, _) in expected.items()
    }
    refused = sum(why is not None for _, why in expected.values())
    faults = backend.server.transport.faults
    assert 5 < refused < 60 and len(faults) == 7, "all that can go wrong went wrong"
    told = ", ".join(f"{what}: {count}" for what, count in faults.most_common())
    print(f"\n1,000 rows in {time.monotonic() - began:.1f} s: {len(server.asked)} requests, {refused} rows refused,")
    print(f"{server.peak} under way at most, {sum(faults.values())} faults ({told})")
    return {row.id: row for row in rows if not isinstance(row, Refusal)}


def test_a_thousand_responses():
    prompts = [Prompt(f"p{index}", ({"role": "user", "content": f"say {index}"},)) for index in range(250)]
    requests = {
        f"{prompt.id}#{sample}": {"messages": list(prompt.messages), "seed": seed_of(SAMPLING, prompt.id, sample)}
        for prompt in prompts
        for sample in range(4)
    }
    began = time.monotonic()
    with serving(rates=RATES, late_s=60, latency_s=0.002) as server:
        generator = EndpointGenerator(Endpoint(url=server.url, retries=RETRIES, timeout_s=6))
        rows = list(generator.generate(prompts, SAMPLING, 4))
        good = check(server, generator, rows, requests, began)
        generator.close()
    for name, row in good.items():
        number = row.prompt_id.removeprefix("p")
        assert row.response == f"say {number} -> {requests[name]['seed']}", "no other row's answer, and no part of one"
    order = [f"{prompt.id}#{sample}" for prompt in prompts for sample in range(4)]
    assert sorted(good, key=lambda name: order.index(name)) == [name for name in order if name in good]


def test_a_thousand_scores():
    rows = [
        Response(f"p{index}#0", f"p{index}", 0, ({"role": "user", "content": f"say {index}"},), f"answer {index}")
        for index in range(1000)
    ]
    random.Random(5).shuffle(rows)
    asked = {row.id: [*row.messages, {"role": "assistant", "content": row.response}] for row in rows}
    began = time.monotonic()
    with serving(rates=RATES, models={"reward": "NVIDIA"}, late_s=60, latency_s=0.002) as server:
        scorer = EndpointScorer(Endpoint(url=server.url, retries=RETRIES, timeout_s=6))
        scored = list(scorer.score(rows))
        good = check(server, scorer, scored, {name: {"messages": turns} for name, turns in asked.items()}, began)
        scorer.close()
    assert all(row.scores == scores_of(asked[name]) for name, row in good.items())
