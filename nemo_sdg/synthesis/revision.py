"""What the policy is told about an answer that nearly passed: `conf/prompts/revise.yaml`, or a text of the user's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from nemo_sdg import resources
from nemo_sdg.errors import ConfigError
from nemo_sdg.records import CONTROL_PIECE
from nemo_sdg.synthesis.templates import checked

_MISSED = {"name": "helpfulness", "score": 2.5, "distance": 0.5}
_GIVEN = {
    "shortfalls": [{**_MISSED, "kind": "minimum", "limit": 3.0}, {**_MISSED, "kind": "maximum", "limit": 2.0}],
    "broken": [{"reason": "must: x", "line": "x"}],
    "prompt": "x",
    "response": "x",
}
"""The names that a template is given, each with an example of its value."""
_SETTING = "revise.request"


class Request:
    """A checked template. Calling it gives the text.

    Raises:
        ConfigError: the template is broken, uses a name that it is not given, or cannot be filled in with examples.
    """

    def __init__(self, text: str | None) -> None:
        shipped = yaml.safe_load((resources.root() / "conf/prompts/revise.yaml").read_text(encoding="utf-8"))
        source = shipped["request"] if text is None else text
        self._words = {name: shipped[name] for name in ("words", "higher", "lower")}
        self.digest = hashlib.sha256(json.dumps([source, self._words], sort_keys=True).encode()).hexdigest()[:16]
        self._template = checked(source, _SETTING, {**_GIVEN, **self._words})
        self(**_GIVEN)

    def __call__(self, **given: Any) -> str:
        try:
            text = self._template.render({**given, **self._words})
        except Exception as error:  # whatever an expression can raise with the values of this answer
            found = f"{type(error).__name__}: {error}"
            raise ConfigError("the template cannot be rendered", where=_SETTING, found=found) from None
        if not text or CONTROL_PIECE.search(text):
            found = CONTROL_PIECE.search(text).group() if text else "nothing"
            raise ConfigError("the template renders to what no user says", where=_SETTING, found=found)
        return text
