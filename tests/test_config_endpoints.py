"""What an endpoint may be, and that no message about it repeats what may be secret."""

from __future__ import annotations

import pytest

from nemo_sdg.config import Endpoint, Generate, RunConfig, fingerprint, identity, validate
from nemo_sdg.config.endpoints import other_server
from nemo_sdg.errors import ConfigError

SECRET = "s3cret"


def config(phase: str = "generate", backend: str = "endpoint", **endpoint) -> RunConfig:
    made = RunConfig()
    settings = getattr(made, phase)
    settings.backend, settings.endpoint = backend, Endpoint(**endpoint)
    return made


@pytest.mark.parametrize("phase", ["generate", "score"])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://integrate.api.nvidia.com/v1", "http://[::1]:80", "https://host/a/b/"]
)
def test_addresses_of_servers_pass(phase, url):
    assert getattr(validate(config(phase, url=url)), phase).endpoint.url == url


@pytest.mark.parametrize("phase", ["generate", "score"])
def test_a_backend_that_is_an_endpoint_needs_an_address(phase):
    with pytest.raises(ConfigError, match=rf"{phase}\.endpoint\.url: the backend is an endpoint, and no server"):
        validate(config(phase))
    validate(config(phase, backend="local"))


@pytest.mark.parametrize("backend", ["endpoint", "local"])
@pytest.mark.parametrize(
    "url, what",
    [
        (f"http://me:{SECRET}@host/v1", "holds a name or password"),
        (f"http://{SECRET}@host/v1", "holds a name or password"),
        (f"http://host:port@{SECRET}/v1", "holds a name or password"),
        (f"https://host/v1?key={SECRET}", "holds more than an address"),
        (f"https://host/v1#{SECRET}", "holds more than an address"),
        ("host:8000/v1", "is no base URL"),
        ("ftp://host/v1", "is no base URL"),
        ("http:///v1", "is no base URL"),
        ("http://host:99999/v1", "is no base URL"),
        ("http://ho st/v1", "is no base URL"),
        ("http://[::1/v1", "is no base URL"),
        ("", "is no base URL"),
    ],
)
def test_what_is_no_plain_address_is_refused_also_where_nobody_uses_it(backend, url, what):
    """run.yaml holds it in any case."""
    with pytest.raises(ConfigError, match=what) as error:
        validate(config(backend=backend, url=url))
    assert SECRET not in str(error.value) and "generate.endpoint.url" in str(error.value)


@pytest.mark.parametrize("key_env", ["sk-proj-" + SECRET, "nvapi " + SECRET, "", "1KEY"])
def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(key_env):
    with pytest.raises(ConfigError, match=r"score\.endpoint\.key_env: it is no name") as error:
        validate(config("score", backend="local", key_env=key_env))
    assert SECRET not in str(error.value)


def test_a_server_may_move_and_get_another_key_while_a_run_goes_on():
    here = config(url="http://a/v1", model="m", key_env="ONE", concurrency=1, retries=0, timeout_s=1.0)
    there = config(url="http://b/v1", model="m", key_env="TWO")
    assert fingerprint(identity(here)) == fingerprint(identity(there))
    assert fingerprint(identity(here)) != fingerprint(identity(config(url="http://a/v1", model="another")))


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("http://one:8000/v1", "KEY"),
        ("http://one:8000/another", "KEY"),
        ("http://one:8001/v1", "KEY_ONE_8001"),
        ("http://two:8000/v1", "KEY_TWO_8000"),
        ("https://one:8000/v1", "KEY_ONE_8000"),
    ],
)
def test_a_key_is_for_one_scheme_host_and_port(url, variable):
    generate = Generate(endpoint=Endpoint(url="http://one:8000/v1", key_env="KEY"))
    assert other_server(url, generate).key_env == variable
