"""Our backends against our own server: the rows of a run with endpoints are those of one with local models."""

from __future__ import annotations

import pytest
from ranks import run_ranks
from serving import POLICY, REWARD, WORLD, served

from nemo_sdg.config import Endpoint
from nemo_sdg.engine.backends.endpoint import EndpointGenerator, EndpointScorer
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.rows import rate, respond
from nemo_sdg.records import Prompt, read_rows

KEY = "a-key-for-this-test-alone"
SLOTS = 8


def local(mesh, prompts, sampling, samples):
    policy, tokenizer = load_model(WORLD / "instruct", mesh)
    rows, _ = respond(policy, tokenizer, mesh, prompts, sampling, samples=samples, slots=SLOTS, provenance={})
    reward, tokenizer = load_model(WORLD / "reward", mesh, reward=True)
    return rows, rate(reward, tokenizer, mesh, rows, provenance={})[0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=12, seed=7, round=2, logprobs=True),
        Sampling(max_tokens=12, seed=7, top_k=5, min_p=0.05, repetition_penalty=1.1, min_tokens=2, stop=("3",)),
    ],
    ids=["plain", "all settings"],
)
def test_the_same_rows_as_with_local_models(server, sampling):
    prompts = read_rows(WORLD / "data" / "prompts.jsonl", Prompt)[0][:12]
    expected, scored = run_ranks(local, prompts, sampling, 2)[0]
    generator, scorer = EndpointGenerator(server), EndpointScorer(server)
    assert (generator.identity, scorer.identity) == ({"policy": "endpoint:instruct"}, {"reward": "endpoint:reward"})
    rows = {row.id: row for row in generator.generate(prompts, sampling, 2)}
    scores = {row.id: row.scores for row in scorer.score(expected)}
    generator.close()
    scorer.close()
    assert rows == {row.id: row for row in expected} and len(rows) == 24
    for row in scored:  # packed with other neighbours, which decide the last digits
        assert scores[row.id] == pytest.approx(row.scores, abs=2e-5)
    assert len(scored) > 12


@pytest.fixture(scope="module")
def server():
    options = (*POLICY, *REWARD, "--slots", str(SLOTS), "--key-env", "TEST_SERVE_KEY")
    with pytest.MonkeyPatch.context() as patch, served(*options, environment={"TEST_SERVE_KEY": KEY}) as running:
        patch.setenv("TEST_CLIENT_KEY", KEY)
        yield Endpoint(url=running.url, key_env="TEST_CLIENT_KEY", timeout_s=60)
