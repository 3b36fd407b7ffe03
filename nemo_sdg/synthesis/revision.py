"""What the policy is told about an answer that nearly passed: `conf/prompts/revise.yaml`, or a text of the user's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from nemo_sdg.config import read_mapping
from nemo_sdg.errors import ConfigError
from nemo_sdg.synthesis.templates import template

_SETTING = "revise.request"
_EXAMPLES = {
    "shortfalls": [
        {"name": "helpfulness", "score": 1.0, "limit": 3.0, "kind": "minimum"},
        {"name": "verbosity", "score": 3.0, "limit": 2.0, "kind": "maximum"},
    ],
    "prompt": "x",
    "response": "x",
}


class Request:
    """A checked template. Calling it gives the text.

    Raises:
        ConfigError: the template is broken, uses a name that it is not given, or gives no text.
    """

    def __init__(self, text: str | None) -> None:
        shipped = read_mapping("package:conf/prompts/revise.yaml", "templates")
        source = shipped["request"] if text is None else text
        self._words = {name: shipped[name] for name in ("words", "higher", "lower")}
        self.digest = hashlib.sha256(json.dumps([source, self._words], sort_keys=True).encode()).hexdigest()[:16]
        self._template = template(source, _SETTING, {**_EXAMPLES, **self._words})

    def __call__(self, **given: Any) -> str:
        text = self._template.render({**given, **self._words})
        if not text:
            raise ConfigError("the template renders to nothing", where=_SETTING, found=repr(self._template.text[:40]))
        return text
