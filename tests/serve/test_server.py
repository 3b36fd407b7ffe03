"""One server with a policy and a reward model, as the `openai` client and bare sockets see it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import time
from urllib.parse import urlsplit

import openai
import pytest
from ranks import run_ranks
from serving import POLICY, REWARD, WORLD, served

from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.rows import rate, respond
from nemo_sdg.records import Prompt, Response, read_rows

KEY = "a-key-that-nobody-may-see"
SLOTS = 16
ASK = [{"role": "user", "content": "3 + 4 ="}]
LONG = dict(max_tokens=220, extra_body={"min_tokens": 220})
"""An answer that cannot end early."""


@pytest.fixture(scope="module")
def server():
    options = (*POLICY, *REWARD, "--slots", str(SLOTS), "--waiting", "64", "--key-env", "TEST_SERVE_KEY")
    with served(*options, environment={"TEST_SERVE_KEY": KEY}) as running:
        running.key = KEY
        yield running
        assert KEY not in running.text


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def rows_of_local(prompts: list[Prompt], sampling: Sampling, samples: int = 1) -> list:
    """What the engine answers without a server, in the same number of slots."""

    def work(mesh):
        model, tokenizer = load_model(WORLD / "instruct", mesh)
        return respond(model, tokenizer, mesh, prompts, sampling, samples=samples, slots=SLOTS, provenance={})[0]

    return run_ranks(work)[0]


def ask(client, **fields):
    return client.chat.completions.create(**{"model": "instruct", "messages": ASK, "max_tokens": 24, **fields})


def test_what_it_says_when_it_is_ready(server):
    line = server.text.splitlines()[-1]
    assert line == f"serving instruct and reward at {server.url}; SIGTERM or Ctrl-C stops it"
    assert "warning" not in server.text


def test_models(client):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["instruct", "reward"] and {model.owned_by for model in models.values()} == {"nemo_sdg"}
    assert client.models.retrieve("reward").nemo_sdg["role"] == "reward"
    assert models["instruct"].max_model_len == 256


def test_a_plain_answer_is_the_row_that_generate_gives(client):
    """Also the stream: a conversation without an id is named by its content, and the seed is the run's."""
    prompt = Prompt.from_row({"messages": ASK})
    [row] = rows_of_local([prompt], Sampling(max_tokens=24, temperature=0.8, seed=1234))
    answer = ask(client, temperature=0.8, seed=1234)
    choice = answer.choices[0]
    assert choice.message.content == row.response and choice.message.role == "assistant"
    assert choice.nemo_sdg == {"token_ids": list(row.response_token_ids), "finish_reason": row.finish_reason}
    assert answer.usage.completion_tokens == len(row.response_token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_several_samples_are_the_rows_of_one_prompt(client):
    rows = rows_of_local([Prompt.from_row({"messages": ASK})], Sampling(max_tokens=24, seed=5), samples=4)
    answer = ask(client, seed=5, n=4)
    assert [choice.message.content for choice in answer.choices] == [row.response for row in rows]
    assert len({row.response for row in rows}) > 1
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize("stop", [None, ["8", "+ "], "\n"])
def test_a_stream_joined_is_the_answer(client, stop):
    asked = dict(n=3, seed=11, temperature=1.2, stop=stop)
    whole = ask(client, **asked)
    texts, finishes, chunks = [""] * 3, [None] * 3, []
    for chunk in ask(client, **asked, stream=True, stream_options={"include_usage": True}):
        chunks.append(chunk)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage == whole.usage and len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 8 if stop is None else not any(part in text for text in texts for part in stop)


def test_log_probabilities_come_with_their_tokens(client):
    choice = ask(client, temperature=0, logprobs=True).choices[0]
    entries = choice.logprobs.content
    assert len(entries) == len(choice.nemo_sdg["token_ids"]) > 0
    assert all(entry.logprob <= 0 for entry in entries)
    spoken = b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
    assert spoken.removesuffix("\n") == choice.message.content
    *_, last = ask(client, temperature=0, logprobs=True, stream=True)
    assert last.choices[0].logprobs.model_dump() == choice.logprobs.model_dump()


def test_limits_of_length(client):
    short = ask(client, max_tokens=2, extra_body={"min_tokens": 2}).choices[0]
    assert short.finish_reason == "length" and len(short.nemo_sdg["token_ids"]) == 2
    full = ask(client, max_tokens=None, extra_body={"min_tokens": 256}).choices[0]
    assert full.finish_reason == "length" and full.nemo_sdg["finish_reason"] == "context"
    assert len(ask(client, **LONG).choices[0].nemo_sdg["token_ids"]) == 220


def test_stop_ids(client):
    ids = ask(client, temperature=0, **LONG).choices[0].nemo_sdg["token_ids"]
    cut = ask(client, temperature=0, extra_body={"stop_token_ids": [ids[3]]}).choices[0]
    assert cut.nemo_sdg["token_ids"] == ids[: ids.index(ids[3])] and cut.finish_reason == "stop"


def test_a_reward_model_answers_as_nim_does(client):
    turns = [*ASK, {"role": "assistant", "content": "7"}]
    answer = client.chat.completions.create(model="reward", messages=turns)
    names = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
    entries = answer.choices[0].logprobs.content
    assert [entry.token for entry in entries] == names

    def work(mesh):
        model, tokenizer = load_model(WORLD / "reward", mesh, reward=True)
        return rate(model, tokenizer, mesh, [Response.from_row({"messages": turns})], provenance={})[0]

    [row] = run_ranks(work)[0]
    assert {entry.token: entry.logprob for entry in entries} == pytest.approx(row.scores, abs=1e-5)
    # The list is NIM's own shape; the client makes messages of what is in it.
    assert answer.choices[0].message[0].content == ",".join(f"{e.token}:{e.logprob}" for e in entries)


def test_64_requests_at_once_get_the_rows_that_local_gives(server):
    """Ids and seeds as another run sends them. All come in while 16 slots are there."""
    prompts = read_rows(WORLD / "data" / "prompts.jsonl", Prompt)[0][:64]
    sampling = Sampling(max_tokens=24, seed=99, round=1)
    rows = {row.prompt_id: row for row in rows_of_local(prompts, sampling)}

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:

            async def one(prompt: Prompt):
                own = {"prompt_id": prompt.id, "sample": 0, "seed": 99, "round": 1}
                messages = list(prompt.messages)
                answer = await ask(client, messages=messages, extra_body={"nemo_sdg": own}, seed=1)
                return answer.choices[0]

            return await asyncio.gather(*map(one, prompts))

    for prompt, choice in zip(prompts, asyncio.run(all_of_them()), strict=True):
        row = rows[prompt.id]
        assert choice.message.content == row.response
        assert choice.nemo_sdg == {"token_ids": list(row.response_token_ids), "finish_reason": row.finish_reason}


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x", KEY[:-1], "é"])
def test_a_wrong_key_is_refused(server, key):
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/instruct")):
        status, headers, body = bare(server, method, path, {"Authorization": f"Bearer {key}".encode("latin-1")}, b"{}")
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert body["error"]["code"] == "invalid_api_key" and KEY not in json.dumps(body)
    with pytest.raises(openai.AuthenticationError):
        ask(openai.OpenAI(base_url=server.url, api_key="wrong"))


def test_health_needs_no_key(server):
    assert bare(server, "GET", "/health", {}, None)[::2] == (200, {"status": "ok"})


def bare(server, method: str, path: str, headers: dict, body: bytes | None):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.request(method, path, body=body, headers={"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    return answer.status, answer.headers, json.loads(answer.read())


BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "status, code, request_",
    [
        (400, "invalid_json", dict(body=b"{")),
        (400, "unknown_parameter", dict(body=json.dumps({"model": "instruct", "messages": ASK, "\ud800": 1}).encode())),
        (404, "model_not_found", dict(body=b'{"model": "gpt"}')),
        (404, "model_not_found", dict(body=b"{}")),
        (404, "unknown_url", dict(path="/v1/completions", body=b"{}")),
        (405, "unknown_url", dict(method="GET", body=None)),
        (404, "model_not_found", dict(method="GET", path="/v1/models/gpt", body=None)),
        (413, "body_too_large", dict(body=b" " * (5 * 2**20))),
        (415, "unsupported_media_type", dict(body=b"{}", headers={"Content-Type": "text/plain"})),
    ],
)
def test_what_is_no_request_gets_the_shape_that_clients_read(server, status, code, request_):
    asked = {"method": "POST", "path": "/v1/chat/completions", "headers": {}, **request_}
    got, _, body = bare(server, asked["method"], asked["path"], {**BEARER, **asked["headers"]}, asked["body"])
    assert (got, body["error"]["code"]) == (status, code)
    assert body["error"]["message"] and body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "model, messages, says",
    [
        ("instruct", [{"role": "user", "content": "ab" * 300}], "longer than the context"),
        ("instruct", [*ASK, {"role": "assistant", "content": "7"}], "the last turn is not the user's"),
        ("instruct", [*ASK, *ASK], "the turns do not alternate"),
        ("reward", ASK, "response"),
        ("reward", [*ASK, {"role": "assistant", "content": "ab" * 300}], "longer than the context"),
    ],
)
def test_a_conversation_that_the_model_cannot_read(client, model, messages, says):
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        ask(client, model=model, messages=messages)
    assert refused.value.param == "messages"


def test_a_large_body_is_read_beside_the_others(client):
    """Parsed in another thread; the answer is the same refusal."""
    with pytest.raises(openai.BadRequestError, match="longer than the context") as refused:
        ask(client, messages=[{"role": "user", "content": "ab" * 100_000}])
    assert refused.value.code == "context_length_exceeded"


def test_too_many_that_wait_are_told_to_come_again(server):
    """16 slots and 64 that may wait: of two times 60 samples one is taken."""

    async def both():
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
            asked = [ask(client, n=60, max_tokens=40, extra_body={"min_tokens": 40}) for _ in range(2)]
            return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(both())
    [error] = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert error.response.headers["retry-after"] == "1" and error.code == "too_many_waiting"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_is_killed_takes_its_rows_with_it(server, client, stream):
    """While 60 samples of a dead client are still there, 60 others get 429."""
    pid = os.fork()
    if pid == 0:
        try:
            # The other side may be asking whether there is room when this comes: then again.
            for _ in ask(server.client(max_retries=20), n=60, stream=stream, **LONG):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    if not stream:
        until = time.monotonic() + 30
        while not refused(client):
            assert time.monotonic() < until, "the server never had the rows"
            time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    until = time.monotonic() + 30
    while refused(client):
        assert time.monotonic() < until, "the rows of the dead client are still there"
        time.sleep(0.05)


def refused(client) -> bool:
    """Whether there is no room for 60 samples."""
    try:
        return len(ask(client, n=60, max_tokens=1).choices) != 60
    except openai.RateLimitError:
        return True


def test_the_end_says_what_became_of_all_requests(server):
    """Last in this file: it stops the server."""
    assert server.stop() == 0
    *_, last = server.text.splitlines()
    answered, refused, cancelled = (int(part.split()[0]) for part in last.removeprefix("stopped: ").split(", "))
    assert answered > 64 and refused > 30 and cancelled == 2, last
