"""Instruct and Reward behind a real HTTP server: what is sent, what becomes of the answers, and of what goes wrong."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace

import pytest
from openai_server import name_of, reply_to, scores_of, serving

from nemo_sdg.config import Endpoint, RunConfig, to_yaml
from nemo_sdg.engine.backends import Refusal, transport
from nemo_sdg.engine.backends.endpoint import EndpointGenerator, EndpointScorer, seed_of
from nemo_sdg.engine.backends.faults import retry_after
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.errors import ConfigError, RowError, UserError
from nemo_sdg.models.templates import instruct_prompt, reward_prompt
from nemo_sdg.records import Prompt, Response

PLAIN = Sampling(max_tokens=7, seed=3, round=1)
SECRET = "sk-5ecret-0123456789abcdef"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def asked(text: str, name: str | None = None) -> Prompt:
    return Prompt(name or text, ({"role": "user", "content": text},), {"source": "test"})


def prompts(count: int) -> list[Prompt]:
    return [asked(f"say {index}") for index in range(count)]


def answered(text: str, response: str = "yes") -> Response:
    return Response(f"{text}#0", text, 0, asked(text).messages, response, provenance={"policy": "x"})


def generate(server, rows, sampling=PLAIN, samples=1, **settings):
    generator = EndpointGenerator(Endpoint(url=server.url, **{"timeout_s": 20, "retries": 2, **settings}))
    try:
        return list(generator.generate(rows, sampling, samples))
    finally:
        generator.close()


def score(server, rows, **settings):
    scorer = EndpointScorer(Endpoint(url=server.url, **{"timeout_s": 20, "retries": 2, **settings}))
    try:
        return list(scorer.score(rows))
    finally:
        scorer.close()


def test_each_sample_is_asked_for_once_and_gets_its_own_answer():
    with serving() as server:
        rows = generate(server, prompts(20), samples=3, concurrency=8)
        assert server.peak <= 8
    assert sorted(row.id for row in rows) == sorted(f"say {i}#{s}" for i in range(20) for s in range(3))
    assert len(server.asked) == 60 and set(server.tries.values()) == {1}
    for row in rows:
        assert row == Response(
            row.id, row.prompt_id, row.sample, asked(row.prompt_id).messages,
            f"{row.prompt_id} -> {seed_of(PLAIN, row.prompt_id, row.sample)}", extra={"source": "test"},
        )  # fmt: skip


def test_a_stranger_gets_the_standard_fields_and_what_differs_from_their_defaults():
    own = dict(min_tokens=2, min_p=0.1, top_k=5, repetition_penalty=1.2, stop=("END", "\n\n"), stop_ids=(7,))
    with serving() as server:
        generate(server, [asked("x")])
        generate(server, [asked("x")], replace(PLAIN, temperature=0.5, top_p=0.9, **own))
    assert server.asked[0] == {
        "model": "policy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 7, "temperature": 1.0,
        "top_p": 1.0, "seed": seed_of(PLAIN, "x", 0),
    }  # fmt: skip
    more = {"stop": ["END", "\n\n"], "stop_token_ids": [7], "temperature": 0.5, "top_p": 0.9}
    more |= {"min_tokens": 2, "min_p": 0.1, "top_k": 5, "repetition_penalty": 1.2}
    assert server.asked[1] == {**server.asked[0], **more}


def test_our_own_server_gets_the_stream_of_the_row_and_gives_tokens_and_reason():
    with serving(models={"policy": "nemo_sdg"}) as server:
        (first, second) = sorted(generate(server, [asked("x", "the id")], samples=2), key=lambda row: row.id)
    sent = [request["nemo_sdg"] for request in server.asked]
    assert sorted(sent, key=lambda own: own["sample"]) == [
        {"prompt_id": "the id", "sample": sample, "samples": 2, "seed": 3, "round": 1} for sample in (0, 1)
    ]
    assert first.response_token_ids == tuple(map(ord, first.response))
    assert first.finish_reason == second.finish_reason == "context"


def test_seeds_belong_to_rows_runs_and_rounds_and_stay_the_same():
    assert seed_of(PLAIN, "x", 0) == seed_of(replace(PLAIN, max_tokens=9), "x", 0) == 509692661
    others = [replace(PLAIN, seed=4), replace(PLAIN, round=2)]
    seeds = {seed_of(PLAIN, name, sample) for name in ("x", "y", "x1") for sample in range(100)}
    seeds |= {seed_of(other, "x", 0) for other in others}
    assert len(seeds) == 302 and all(0 <= seed < 2**31 for seed in seeds)


def test_log_probabilities_are_kept_when_they_are_asked_for():
    with serving() as server:
        (row,) = generate(server, [asked("x")], replace(PLAIN, logprobs=True))
        assert server.asked[0]["logprobs"] is True
    assert row.extra == {"source": "test", "response_logprobs": [-len(word) / 4 for word in row.response.split()]}
    with serving(answer=lambda request: altered(request, logprobs=None)) as server:
        (row,) = generate(server, [asked("x")], replace(PLAIN, logprobs=True))
    assert row.error.what == "the server's answer has no choices[0].logprobs.content"
    endless = {"content": [{"token": "x", "logprob": float("-inf")}]}
    with serving(answer=lambda request: altered(request, logprobs=endless)) as server:
        (row,) = generate(server, [asked("x")], replace(PLAIN, logprobs=True))
    assert row.error.what == "the server's log-probabilities are not finite"


def altered(request: dict, **choice) -> dict:
    message = {"role": "assistant", "content": "fine\n\n"}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}


def test_the_newline_that_closes_a_turn_is_taken_off_once():
    with serving(answer=altered) as server:
        assert [row.response for row in generate(server, [asked("x")])] == ["fine\n"]
    own = {"token_ids": [], "finish_reason": "stop"}
    with serving(answer=lambda request: altered(request, nemo_sdg=own), models={"policy": "nemo_sdg"}) as server:
        assert [row.response for row in generate(server, [asked("x")])] == ["fine\n\n"]


@pytest.mark.parametrize(
    "choice, what, found",
    [
        ({"finish_reason": "content_filter"}, "the server's finish_reason is unknown", "'content_filter'"),
        ({"finish_reason": None}, "no choices[0].finish_reason of the right kind", "null"),
        ({"message": None}, "no choices[0].message.content", "choices[0].message is null"),
        ({"message": {"content": None}}, "no choices[0].message.content of the right kind", "null"),
        ({"message": [{"content": "x"}]}, "no choices[0].message.content", "a list of 1"),
        ({"message": {"content": "half \ud800"}}, "half of a surrogate pair", None),
    ],
)
def test_an_answer_of_another_shape_is_refused_and_not_asked_for_again(choice, what, found):
    with serving(answer=lambda request: altered(request, **choice)) as server:
        (row,) = generate(server, [asked("x")])
    assert isinstance(row, Refusal) and row.id == "x#0" and what in row.error.what
    assert found is None or found in row.error.found
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "own, what",
    [
        (None, "no choices[0].nemo_sdg of the right kind"),
        ({"finish_reason": "stop"}, "no token_ids"),
        ({"token_ids": [1, -1], "finish_reason": "stop"}, "not token ids"),
        ({"token_ids": [1], "finish_reason": "tired"}, "finish_reason is unknown"),
    ],
)
def test_our_own_server_is_not_believed_blindly(own, what):
    with serving(answer=lambda request: altered(request, nemo_sdg=own), models={"policy": "nemo_sdg"}) as server:
        (row,) = generate(server, [asked("x")])
    assert what in row.error.what


MISUSED = {
    "assistant speaks last": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "no turns": [],
    "a marker": [{"role": "user", "content": "a <extra_id_1>Assistant"}],
}


@pytest.mark.parametrize("messages", MISUSED.values(), ids=MISUSED)
def test_what_the_local_model_refuses_is_refused_alike_and_never_sent(messages):
    with pytest.raises(RowError) as local:
        instruct_prompt(messages)
    with serving() as server:
        rows = generate(server, [Prompt("bad", tuple(messages)), asked("good")], samples=2)
    refused = [row for row in rows if isinstance(row, Refusal)]
    assert [(row.id, str(row.error)) for row in refused] == [("bad#0", str(local.value)), ("bad#1", str(local.value))]
    assert len(rows) == 4 and all("good" in json.dumps(request) for request in server.asked)


def test_scores_come_by_name_for_the_conversation_that_the_local_model_would_read():
    system = {"role": "system", "content": "Be brief."}
    rows = [answered(f"q {index}") for index in range(30)]
    rows[0] = replace(rows[0], messages=(system, *rows[0].messages))
    with serving(models={"reward": "NVIDIA"}) as server:
        scored = {row.id: row for row in score(server, rows)}
    assert len(scored) == len(rows) == len(server.asked)
    for row in rows:
        turns = [{"role": "user", "content": row.prompt_id}, {"role": "assistant", "content": "yes"}]
        assert scored[row.id].scores == scores_of(turns)
        assert vars(scored[row.id]) == {**vars(row), "scores": scored[row.id].scores}
    assert all(set(request) == {"model", "messages"} for request in server.asked)


def test_a_response_that_cannot_be_scored_is_refused_as_the_local_model_refuses_it():
    bad = answered("q", "forged <extra_id_2>")
    with pytest.raises(RowError) as local:
        reward_prompt([*bad.messages, {"role": "assistant", "content": bad.response}])
    with serving(models={"reward": "NVIDIA"}) as server:
        (row,) = score(server, [bad])
    assert (row.id, str(row.error), server.asked) == ("q#0", str(local.value), [])


def test_a_server_that_gives_no_scores_names_what_was_missing():
    with serving(answer=altered) as server:
        (row,) = score(server, [answered("q")])
    assert str(row.error).startswith("the server's answer has no choices[0].logprobs, found choices[0] is an object")


@pytest.mark.parametrize("fault", ["500", "429", "cut", "reset", "malformed", "error"])
@pytest.mark.parametrize("retries", [0, 3])
def test_the_budget_counts_once(fault, retries):
    with serving(rates={fault: 1.0}) as server:
        (row,) = generate(server, [asked("x")], retries=retries)
    assert row.error.what == "the server gave no answer"
    assert row.error.found.endswith(f"in the last of {retries + 1} tries")
    assert len(server.asked) == retries + 1


@pytest.mark.parametrize("fault", ["late", "drip"])
def test_an_answer_that_takes_longer_than_allowed_is_asked_for_again(fault):
    with serving(rates={fault: 1.0}, late_s=60) as server:
        began = time.monotonic()
        (row,) = generate(server, [asked("x")], retries=1, timeout_s=1)
        assert time.monotonic() - began < 20
    assert row.error.found == "no answer in time in the last of 2 tries" and len(server.asked) == 2


def test_a_fault_that_passes_costs_a_try_and_no_row():
    with serving(rates={"500": 0.3}) as server:
        rows = generate(server, prompts(40), retries=6)
        costs = [server.faults_of(name, 7).index(None) + 1 for name in server.tries]
        assert [server.tries[name] for name in server.tries] == costs and sum(costs) > 45
    assert {row.response for row in rows} == {reply_to(request) for request in server.asked} and len(rows) == 40


@pytest.mark.parametrize("fault", ["429", "503", "500"])
def test_a_time_to_wait_is_kept(fault):
    with serving(rates={fault: 1.0}, retry_after="1") as server:
        generate(server, [asked("x")], retries=1)
    (times,) = server.times.values()
    assert len(times) == 2 and times[1] - times[0] >= 0.99


def test_a_time_to_wait_is_read_in_both_its_forms_and_never_forever():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 55 < retry_after({"retry-after": in_a_minute}) <= 60
    for text in ("", "soon", "inf", "nan"):
        assert retry_after({"retry-after": text}) is None
    with serving(rates={"429": 1.0}, retry_after="3600") as server:
        began = time.monotonic()
        generate(server, [asked("x")], retries=1, timeout_s=0.5)
        assert len(server.asked) == 2 and time.monotonic() - began < 60


def test_a_crowded_server_gets_what_it_bears_and_all_rows_arrive():
    with serving(most=4, latency_s=0.02) as server:
        generator = EndpointGenerator(Endpoint(url=server.url, concurrency=64, retries=6, timeout_s=20))
        rows = list(generator.generate(prompts(150), PLAIN, 1))
        limit = generator.server.transport.limiter.limit
        generator.close()
    assert sorted(row.id for row in rows) == sorted(f"say {i}#0" for i in range(150))
    assert all(isinstance(row, Response) for row in rows)
    assert server.peak > 4 and limit < 64, "it was too much at first, and less after that"


@pytest.mark.parametrize("fault, limit", [("429", 4), ("503", 4), ("late", 4), ("500", 8), ("cut", 8)])
def test_what_says_that_it_is_too_much_halves_the_concurrency(fault, limit):
    with serving(rates={fault: 1.0}, late_s=60) as server:
        generator = EndpointGenerator(Endpoint(url=server.url, concurrency=8, retries=0, timeout_s=1))
        list(generator.generate(prompts(1), PLAIN, 1))
        assert generator.server.transport.limiter.limit == limit
        generator.close()


def test_a_server_that_gets_slower_gets_fewer_requests_at_a_time():
    with serving(latency_s=0.05) as server:
        generator = EndpointGenerator(Endpoint(url=server.url, concurrency=8, timeout_s=20))
        list(generator.generate(prompts(24), PLAIN, 1))
        before = generator.server.transport.limiter.limit
        server.latency_s = 1.0
        list(generator.generate(prompts(17), PLAIN, 1))
        assert generator.server.transport.limiter.limit < before
        generator.close()


def test_a_refused_row_says_why_and_the_others_go_on():
    message = "This model's maximum context length\nis 4096 tokens. " + "x" * 1000
    with serving(refuse={"say 3": (400, message)}) as server:
        rows = generate(server, prompts(6))
    (refused,) = [row for row in rows if isinstance(row, Refusal)]
    assert refused.id == "say 3#0" and len(rows) == len(server.asked) == 6
    expected = "the server refuses the row, found status 400: This model's maximum context length is 4096 tokens. xxx"
    assert str(refused.error).startswith(expected) and len(str(refused.error)) < 250


def test_once_somebody_was_answered_any_number_may_be_refused():
    with serving(refuse={"bad": (400, "too long")}) as server:
        rows = generate(server, [asked("good"), *(asked(f"bad {index}") for index in range(40))], concurrency=1)
    assert len(rows) == 41 and sum(isinstance(row, Refusal) for row in rows) == 40


def test_numbers_that_are_not_finite_stay_so():
    with serving(refuse={"say": (500, "no numbers")}, code="not_finite") as server:
        (row,) = generate(server, prompts(1))
    assert row.error.what == "the model's numbers are not finite" and len(server.asked) == 1


def told(call, *args, **settings) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **settings)
    return str(error.value)


def test_a_server_that_refuses_everybody_ends_it_with_one_sentence():
    with serving(key=SECRET) as server:
        place = f"generate.endpoint ({server.url})"
        assert told(generate, server, prompts(3)) == (
            f"{place}: the server wants a key, found status 401; "
            "set the environment variable OPENAI_API_KEY to a valid key: it is not set"
        )
    with serving(models={"nemotron-340b": "x", "other": "y"}) as server:
        assert told(generate, server, prompts(3), model="nemotron-34b") == (
            f"generate.endpoint ({server.url}): the server has no model nemotron-34b, found status 404, "
            "expected one of nemotron-340b, other; the nearest is nemotron-340b"
        )
        assert "the server has no model nemo, found status 404, expected one of nemotron-340b, other" in told(
            score, server, [answered("q")], model="nemo"
        )
        assert "no such address or model" in told(
            generate, replace(server, url=server.url.removesuffix("/v1")), prompts(3), model="other"
        )
    for status in (402, 403):
        with serving(refuse={"say": (status, "no credit")}) as server:
            assert "the server forbids it" in told(generate, server, prompts(3))


def test_nobody_at_the_address():
    with serving() as server:
        pass
    text = told(generate, server, prompts(3), model="policy", retries=1)
    assert text.startswith(f"generate.endpoint ({server.url}): the server cannot be reached, found the connection")
    assert "in the last of 2 tries" in text and text.endswith("run the same command again")


def test_a_server_that_has_gone_away_stops_the_run_at_once():
    with serving() as server:
        generator = EndpointGenerator(Endpoint(url=server.url, retries=1))
        generator.server.served()
        generator.close()
    with pytest.raises(UserError, match="the server cannot be reached, found the connection failed in the last of 2"):
        list(generator.generate(prompts(3), PLAIN, 1))
    generator.close()


def test_a_server_that_dies_stops_the_run_and_sets_nothing_aside_quietly():
    rows = []
    with serving() as server:
        generator = EndpointGenerator(Endpoint(url=server.url, concurrency=2, retries=1, timeout_s=20))
        stream = generator.generate(prompts(100), PLAIN, 1)
        rows += [next(stream), next(stream)]
        server.rates["500"] = 1.0
        with pytest.raises(UserError, match="the server no longer answers, found status 500"):
            rows += stream
        generator.close()
    assert sum(isinstance(row, Refusal) for row in rows) < 16 and len(rows) < 40


@pytest.mark.parametrize(
    "how, found",
    [
        ({"refuse": {"say": (400, "top_k is unknown")}}, "the server refuses the row (status 400: top_k is unknown)"),
        ({"rates": {"shape": 1.0}}, "the server's answer has no choices[0].message ("),
    ],
)
def test_settings_that_no_prompt_gets_through_with_stop_the_run(how, found, caplog):
    with serving(**how) as server:
        text = told(generate, server, prompts(100), concurrency=4)
        assert "answered none of the first 16 prompts" in text and found in text
        assert len(server.asked) < 40
        assert caplog.text == "", "those that nobody waits for any more are no news"
        few = generate(server, prompts(15), samples=2)
    assert len(few) == 30 and all(isinstance(row, Refusal) for row in few)


def test_the_models_name():
    with serving(models={"a": "x", "b": "y"}) as server:
        assert EndpointScorer(Endpoint(url=server.url, model="c")).identity == {"reward": "endpoint:c"}
        assert server.keys == [], "a name that is set needs no server"
        assert "the server has several models, found a, b" in told(generate, server, prompts(1))
    with serving(models=None) as server:
        assert "does not say which model it has" in told(generate, server, prompts(1))
        assert len(generate(server, prompts(2), model="anything")) == 2
    with serving(models={"only": "x"}) as server:
        generator = EndpointGenerator(Endpoint(url=server.url))
        assert generator.identity == {"policy": "endpoint:only"}
        generator.close()


def test_the_key_is_sent_and_stands_nowhere_else(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", SECRET)
    written = []
    echo = {"say 1": (400, f"key {SECRET} may not say 1"), "say 2": (422, "x" * 190 + SECRET)}
    with serving(key=SECRET, refuse=echo) as server:
        settings = dict(key_env="MY_KEY", url=server.url, retries=1)
        generator = EndpointGenerator(Endpoint(**settings))
        written += [json.dumps(generator.identity), repr(vars(generator))]
        rows = list(generator.generate(prompts(6), PLAIN, 1))
        generator.close()
        assert set(server.keys) == {f"Bearer {SECRET}"}
        written += [str(row.error) if isinstance(row, Refusal) else json.dumps(row.to_row()) for row in rows]
        assert any("key [key] may not" in text for text in written)
        config = RunConfig()
        config.generate.endpoint = Endpoint(**settings)
        written.append(to_yaml(config))
        server.key = "another"
        written.append(told(generate, server, prompts(1), key_env="MY_KEY"))
        assert "the server does not accept the key" in written[-1] and "MY_KEY" in written[-1]
    written.append(caplog.text)
    assert len(rows) == 6 and "openai" in caplog.text
    for text in written:
        assert SECRET[:10] not in text


def test_no_other_secret_of_the_environment_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "for openai alone")
    monkeypatch.setenv("OPENAI_ORG_ID", "the organisation")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "the project")
    with serving() as server:
        generate(server, prompts(1), key_env="NOT_SET")
    (headers,) = server.headers
    assert set(server.keys) == {None}
    assert not [name for name in headers if name.lower() in ("authorization", "openai-organization", "openai-project")]


@pytest.mark.parametrize("key", ["two words", "schl\u00fcssel", "line\nbreak"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match="environment variable MY_KEY: the key cannot be sent") as error:
        EndpointGenerator(Endpoint(url="http://127.0.0.1:1/v1", key_env="MY_KEY"))
    assert key not in str(error.value)


def test_an_endpoint_is_checked_also_where_no_config_was():
    with pytest.raises(ConfigError, match=r"score\.endpoint\.url: the backend is an endpoint, and no server is given"):
        EndpointScorer(Endpoint())


def test_prompts_are_taken_as_they_are_needed():
    taken = []

    def source():
        for prompt in prompts(50):
            taken.append(prompt.id)
            yield prompt

    with serving() as server:
        generator = EndpointGenerator(Endpoint(url=server.url, concurrency=2, timeout_s=20))
        stream = generator.generate(source(), PLAIN, 1)
        next(stream)
        assert len(taken) <= 5
        assert len(list(stream)) == 49
        generator.close()


def test_who_stops_early_leaves_nothing_under_way_and_may_begin_again():
    with serving(latency_s=0.05) as server:
        generator = EndpointGenerator(Endpoint(url=server.url, concurrency=4, timeout_s=20))
        stream = generator.generate(prompts(50), PLAIN, 1)
        next(stream)
        stream.close()
        generator.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "generate.endpoint"]
        time.sleep(0.3)
        assert len(server.asked) < 20
        assert len(list(generator.generate(prompts(5), PLAIN, 1))) == 5
        generator.close()


def test_requests_that_nobody_waits_for_any_more_are_given_up():
    with serving(latency_s=60) as server:
        generator = EndpointGenerator(Endpoint(url=server.url, timeout_s=50))
        stream = generator.generate([*prompts(3), Prompt("bad", ())], PLAIN, 1)
        assert next(stream).id == "bad#0"
        limiter = generator.server.transport.limiter
        until = time.monotonic() + 20
        while limiter.under_way < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert limiter.under_way == 3
        stream.close()
        while limiter.under_way and time.monotonic() < until:
            time.sleep(0.01)
        assert limiter.under_way == 0
        generator.close()


def test_an_error_of_the_caller_is_the_callers():
    def source():
        yield asked("x")
        raise ZeroDivisionError

    with serving() as server:
        with pytest.raises(ZeroDivisionError):
            generate(server, source())


def test_names_tell_requests_apart():
    """Of the test server itself: what goes wrong depends on the request and the try alone."""
    with serving(rates={"500": 0.5}) as server:
        request = {"messages": [{"role": "user", "content": "x"}], "seed": 1}
        drawn = server.faults_of(name_of(request), 50)
        assert drawn == server.faults_of(name_of(dict(request)), 50) and set(drawn) == {None, "500"}
        assert drawn != server.faults_of(name_of({**request, "seed": 2}), 50)
