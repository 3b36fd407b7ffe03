"""What an endpoint may be: an address that holds no secret, and the name of the variable that holds the key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from nemo_sdg.config.settings import Endpoint, Generate
from nemo_sdg.errors import ConfigError

_EXAMPLE = "http://127.0.0.1:8000/v1"


def check_endpoint(endpoint: Endpoint, where: str, *, used: bool) -> None:
    """Raises ConfigError, which never repeats a part of the value that may be secret.

    Args:
        where: the setting, for example `generate.endpoint`.
        used: whether a backend talks to it, so that it needs a URL.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", endpoint.key_env):
        raise ConfigError(
            "it is no name of an environment variable", where=f"{where}.key_env",
            expected="a name such as OPENAI_API_KEY",
            way_out="put the key itself into that variable: what stands here is written to run.yaml",
        )  # fmt: skip
    if endpoint.url is None:
        if used:
            raise ConfigError(
                "the backend is an endpoint, and no server is given", where=f"{where}.url",
                expected=f"a base URL, for example {_EXAMPLE}",
            )  # fmt: skip
        return
    try:
        parts = urlsplit(endpoint.url)
        parts.port  # noqa: B018  (raises if it is no number)
        good = parts.scheme in ("http", "https") and parts.hostname and not re.search(r"\s", endpoint.url)
    except ValueError:
        parts, good = None, False
    if "@" in endpoint.url:
        raise ConfigError(
            "the URL holds a name or password", where=f"{where}.url", expected=f"one without them, such as {_EXAMPLE}",
            way_out=f"put the key into the environment variable {endpoint.key_env}",
        )  # fmt: skip
    if parts is not None and (parts.query or parts.fragment):
        raise ConfigError(
            "the URL holds more than an address", where=f"{where}.url", found="a query or a fragment",
            expected=f"a base URL such as {_EXAMPLE}",
        )  # fmt: skip
    if not good:
        raise ConfigError(
            "it is no base URL", where=f"{where}.url", found=endpoint.url, expected=f"one such as {_EXAMPLE}"
        )


def other_server(name: str, generate: Generate) -> Endpoint | None:
    """The server that an entry of `generate.others` means, asked as `generate.endpoint` is; None for a folder.

    A key goes to the address that it was given for. A server at another one than generate.endpoint's gets what the
    variable of the same name with the server's own behind it holds, for example OPENAI_API_KEY_127_0_0_1_8000.
    """
    if not _is_server(name):
        return None
    url, _, model = name.partition("#")
    like = generate.endpoint
    here, there = (urlsplit(one or "") for one in (url, like.url))
    key_env = like.key_env
    if (here.scheme, here.netloc) != (there.scheme, there.netloc):
        key_env += "_" + re.sub(r"[^A-Z0-9]", "_", here.netloc.upper())
    return dataclasses.replace(like, url=url, model=model or None, key_env=key_env)


def without_addresses(others: Mapping[str, int]) -> dict[str, int]:
    """`generate.others` with each server named by its place among the servers and by its model, not by its address:
    a server may move, and what a dataset's card tells goes to others. `.invalid` is nobody's address (RFC 6761).

    The model of an entry that names none is what the server says that it serves, which the stage holds to.
    """
    named, servers = {}, 0
    for name, samples in others.items():
        if _is_server(name):
            servers += 1
            _, mark, model = name.partition("#")
            name = f"http://server-{servers}.invalid/v1{mark}{model}"
        named[name] = samples
    return named


def _is_server(name: str) -> bool:
    return name.lower().startswith(("http:", "https:"))


def check_others(generate: Generate) -> None:
    """Raises ConfigError for an entry of `generate.others` that can be no generator."""
    for name, samples in generate.others.items():
        where = "generate.others"
        if not name.strip():
            expected = "a model's folder or a server's base URL"
            raise ConfigError("the generator has no name", where=where, found=repr(name), expected=expected)
        if samples < 1:
            way_out = "leave the generator out"
            raise ConfigError(
                "nothing would be asked of it", where=where, found=f"{name}: {samples}",
                expected="a whole number of at least 1", way_out=way_out,
            )  # fmt: skip
        if "#" in name and name.endswith("#"):
            raise ConfigError("the model behind # has no name", where=where, found=name, way_out="leave # out")
        try:
            server = other_server(name, generate)
        except ValueError:
            server = Endpoint(url=name)
        if server is not None:
            check_endpoint(server, where, used=True)
