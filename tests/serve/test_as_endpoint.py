"""A run whose endpoint is our own server gets the rows of a run with the model itself."""

from __future__ import annotations

from ranks import run_ranks
from serving import POLICY, REWARD, WORLD, served

from nemo_sdg.config import Endpoint
from nemo_sdg.engine.backends.endpoint import EndpointGenerator, EndpointScorer
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.rows import rate, respond
from nemo_sdg.records import Prompt, Response, Scored, read_rows

SLOTS, SAMPLES = 16, 3
SAMPLING = Sampling(
    max_tokens=24, min_tokens=2, temperature=0.9, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1,
    stop=(". ",), seed=21, round=2,
)  # fmt: skip


def prompts() -> list[Prompt]:
    """Short ones, two that are longer than a block of the cache, one with turns, and one that cannot be answered."""
    rows = read_rows(WORLD / "data" / "prompts.jsonl", Prompt)[0][:12]
    long = "sort the letters: " + "hgfedcba " * 9
    rows += [Prompt.from_row({"prompt": long + end}) for end in ("a", "b")]
    turns = ("user", "3 + 4 ="), ("assistant", "7"), ("user", "4 + 4 =")
    rows.append(Prompt.from_row({"id": "turns", "messages": [{"role": r, "content": text} for r, text in turns]}))
    return [*rows, Prompt.from_row({"id": "too long", "prompt": "ab" * 300})]


def local(mesh):
    model, tokenizer = load_model(WORLD / "instruct", mesh)
    made, refused = respond(
        model, tokenizer, mesh, prompts(), SAMPLING, samples=SAMPLES, slots=SLOTS, provenance={}
    )
    reward, _ = load_model(WORLD / "reward", mesh, reward=True)
    return made, sorted(refused), rate(reward, tokenizer, mesh, made, provenance={})[0]


def test_the_same_rows():
    [(made, refused, scored)] = run_ranks(local)
    assert len(made) == 15 * SAMPLES and refused == [f"too long#{n}" for n in range(SAMPLES)]
    with served(*POLICY, *REWARD, "--slots", str(SLOTS)) as server:
        generator = EndpointGenerator(Endpoint(url=server.url, model="instruct"))
        rows = list(generator.generate(prompts(), SAMPLING, SAMPLES))
        generator.close()
        judge = EndpointScorer(Endpoint(url=server.url, model="reward"))
        judged = {row.id: row for row in judge.score(made)}
        judge.close()
    answered = {row.id: row for row in rows if isinstance(row, Response)}
    assert sorted(row.id for row in rows if not isinstance(row, Response)) == refused
    assert answered == {row.id: row for row in made}
    assert {row.finish_reason for row in made} == {"stop", "length"}
    for row in scored:
        told = judged[row.id]
        assert isinstance(told, Scored) and told.response == row.response
        # Who shares a forward pass with whom differs, and with it the last digits.
        assert all(abs(told.scores[name] - score) < 2e-5 for name, score in row.scores.items())
