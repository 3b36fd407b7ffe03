"""Servers of several ranks: equal answers, long silences, ranks that die, and how a server ends."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import torch
from folders import make_model, make_tokenizer, small_shape
from processes import forked
from ranks import run_ranks
from serving import POLICY, REWARD, WORLD, served

from nemo_sdg import cli
from nemo_sdg.checkpoints import save
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.rows import respond
from nemo_sdg.records import Prompt
from nemo_sdg.serve.loop import ECHO_S

ASK = [{"role": "user", "content": "3 + 4 ="}]
LONG = dict(max_tokens=80, extra_body={"min_tokens": 80})
TURNS = [*ASK, {"role": "assistant", "content": "7"}]


def ask(client, **fields):
    return client.chat.completions.create(**{"model": "instruct", "messages": ASK, "max_tokens": 24, **fields})


def local(mesh):
    model, tokenizer = load_model(WORLD / "instruct", mesh, dtype="fp64")
    sampling = Sampling(max_tokens=24, seed=7)
    made, _ = respond(
        model, tokenizer, mesh, [Prompt.from_row({"messages": ASK})], sampling, samples=4, slots=8, provenance={}
    )
    return [row.response for row in made]


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("options", [("--tp", "2"), ("--pp", "2")], ids=" ".join)
def test_two_ranks_answer_as_one_and_outwait_their_timeout(options):
    [expected] = run_ranks(local)
    with served(*POLICY, *REWARD, *options, "--slots", "8", "--dtype", "fp64", "--timeout", "3") as server:
        client = server.client()
        answers = [choice.message.content for choice in ask(client, n=4, seed=7).choices]
        assert answers == expected
        ranks = server.ranks()
        before = [processor_s(pid) for pid in ranks]
        time.sleep(5)
        assert max(processor_s(pid) - used for pid, used in zip(ranks, before)) < 0.5, "idle ranks burn a core"
        assert [choice.message.content for choice in ask(client, n=4, seed=7).choices] == expected
        assert len(client.chat.completions.create(model="reward", messages=TURNS).choices[0].logprobs.content) == 5
        assert server.stop() == 0
        assert server.text.splitlines()[-1] == "stopped: 3 answered, 0 refused, 0 cancelled"


@pytest.mark.parametrize("working", [False, True])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_server_with_one_error(working, victim):
    with served(*POLICY, "--tp", "2", "--slots", "8") as server:
        stream = iter(ask(server.client(), stream=True, **LONG)) if working else iter([0])
        next(stream)
        os.kill(server.ranks()[victim], signal.SIGKILL)
        with pytest.raises((openai.APIError, httpx.HTTPError, StopIteration)):
            while True:
                next(stream)
        assert server.wait(30) == 1
        errors = [line for line in server.text.splitlines() if line.startswith("nemo-sdg: ")]
        assert len(errors) == 1 and f"rank {victim} was ended by signal 9" in errors[0], server.text


@pytest.mark.parametrize("options", [(), ("--tp", "2")], ids=["one", "tp2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_finished_before_the_end(options, number):
    with served(*POLICY, *options, "--slots", "8") as server:
        client, tokens = server.client(), 0
        stream = ask(client, stream=True, stream_options={"include_usage": True}, **LONG)
        for chunk in stream:
            if not tokens:  # twice, as a terminal and a launcher that passes it on may send it
                os.kill(server.pid, number)
                os.kill(server.pid, number)
            tokens += 1
        assert chunk.usage.completion_tokens == 80
        assert server.wait() == 0
        assert server.text.splitlines()[-1] == "stopped: 1 answered, 0 refused, 0 cancelled"
        with pytest.raises(openai.APIConnectionError):
            ask(client)


def test_a_later_signal_ends_the_grace():
    with served(*POLICY, "--slots", "8", "--grace", "600") as server:
        stream = ask(server.client(), n=100, stream=True, max_tokens=200, extra_body={"min_tokens": 200})
        next(stream)
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(1.5 * ECHO_S)
        os.kill(server.pid, signal.SIGTERM)
        with pytest.raises(openai.APIError, match="this server is being stopped"):
            for _ in stream:
                pass
        assert server.wait() == 0


def test_without_grace_the_client_is_told():
    with served(*POLICY, "--slots", "8", "--grace", "0") as server:
        stream = ask(server.client(), stream=True, **LONG)
        next(stream)
        os.kill(server.pid, signal.SIGTERM)
        with pytest.raises(openai.APIError, match="this server is being stopped"):
            for _ in stream:
                pass
        assert server.wait() == 0


def test_an_open_address_without_a_key_is_warned_of():
    with served(*REWARD, "--host", "0.0.0.0", "--reward-name", "judge") as server:
        assert "warning: whoever reaches 0.0.0.0:" in server.text
        assert server.url.startswith("http://0.0.0.0:")
        assert [model.id for model in server.client().models.list()] == ["judge"]


def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = forked(lambda: cli.main(["serve", *POLICY, "--port", str(taken.getsockname()[1])]))
    assert done.returncode == 2 and "loading" not in done.stdout
    assert "the server cannot use this address, found Address already in use" in done.stderr


@pytest.mark.parametrize(
    "options, says",
    [
        ((), "there is nothing to serve"),
        ((*POLICY, "--key-env", "NO_SUCH_KEY"), "environment variable NO_SUCH_KEY: there is no key"),
        ((*POLICY, "--reward", POLICY[1], "--reward-name", "judge"), "the checkpoint is of the wrong kind"),
        ((*POLICY, *REWARD, "--reward-name", "instruct"), "both models have the same name"),
        ((*POLICY, "--host", "no.such.host.invalid"), "the server cannot use this address"),
        ((*POLICY, "--slots", "0"), "generate.slots: the value is not allowed"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(options, says):
    done = forked(lambda: cli.main(["serve", *options]))
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_more_ranks_than_one_replica_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    done = forked(lambda: cli.main(["serve", *POLICY, "--tp", "2"]))
    assert done.returncode == 2
    assert "the server is one replica of its models, found 4 ranks, expected --tp 2 x --pp 1 = 2" in done.stderr


def test_the_port_opens_after_the_models_are_loaded():
    """Nobody finds a server that answers with errors while it loads."""
    with served(*REWARD) as server:
        text = server.text
        assert text.index("loading the models") < text.index("serving ")
        with socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=5):
            pass


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """(a policy, a reward model) whose numbers are not finite."""
    folder = tmp_path_factory.mktemp("broken")
    tokenizer = make_tokenizer(folder / "tokenizer.model")

    def write(mesh):
        for reward in (False, True):
            model = make_model(mesh, small_shape(), reward=reward)
            with torch.no_grad():
                model.decoder.final_layernorm.weight.fill_(3e38)  # finite itself, as a checkpoint must be
            save.save(model, folder / ("reward" if reward else "policy"), small_shape(), tokenizer.read_bytes(), mesh)

    run_ranks(write)
    return folder


def test_numbers_that_are_not_finite_are_never_an_answer(broken):
    with served("--policy", str(broken / "policy"), "--reward", str(broken / "reward"), "--slots", "4") as server:
        client = server.client()
        for fields in (dict(model="policy"), dict(model="reward", messages=TURNS)):
            with pytest.raises(openai.InternalServerError) as failed:
                ask(client, **fields)
            assert failed.value.code == "not_finite"
        with pytest.raises(openai.APIError, match="not finite"):
            list(ask(client, model="policy", stream=True))
