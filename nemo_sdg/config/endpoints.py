"""What an endpoint may be: an address that holds no secret, and the name of the variable that holds the key."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from nemo_sdg.config.settings import Endpoint
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
