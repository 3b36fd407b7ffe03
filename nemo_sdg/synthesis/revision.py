"""What the policy is told about an answer that nearly passed: `conf/prompts/revise.yaml`, or a text of the user's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from nemo_sdg import resources
from nemo_sdg.config.values import nearest
from nemo_sdg.errors import ConfigError

_NAMES = ("shortfalls", "broken", "prompt", "response", "words", "higher", "lower")
_SETTING = "revise.request"


class Request:
    """A checked template. Calling it gives the text.

    Raises:
        ConfigError: the template is broken, or uses a name that it is not given.
    """

    def __init__(self, text: str | None) -> None:
        shipped = yaml.safe_load((resources.root() / "conf/prompts/revise.yaml").read_text(encoding="utf-8"))
        source = shipped["request"] if text is None else text
        self._words = {name: shipped[name] for name in ("words", "higher", "lower")}
        self.digest = hashlib.sha256(json.dumps([source, self._words], sort_keys=True).encode()).hexdigest()[:16]
        room = SandboxedEnvironment(undefined=StrictUndefined)
        try:
            unknown = sorted(meta.find_undeclared_variables(room.parse(source)) - set(_NAMES))
        except TemplateError as error:
            raise ConfigError("the template is broken", where=_SETTING, found=str(error)) from None
        if unknown:
            raise ConfigError(
                "the template uses a name that it is not given", where=_SETTING, found=unknown[0],
                expected="one of " + ", ".join(_NAMES), way_out=f"the nearest is {nearest(unknown[0], _NAMES)}",
            )  # fmt: skip
        self._template = room.from_string(source)

    def __call__(self, **given: Any) -> str:
        try:
            return self._template.render(**given, **self._words)
        except TemplateError as error:
            raise ConfigError("the template cannot be filled in", where=_SETTING, found=str(error)) from None
