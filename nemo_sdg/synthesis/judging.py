"""The texts of conf/prompts/judge.yaml: yes/no questions about one response, and which of two is better."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from nemo_sdg.config import fingerprint
from nemo_sdg.synthesis.answers import choice
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.instructions import check, language_spec
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.templates import Templates

QUESTIONS = ("must", "must_not", "on_topic")
"""Questions about one response."""
_SLOTS = {name: {"line": "x", "conversation": "x", "response": "x"} for name in QUESTIONS}
_SLOTS |= {"compare": {"conversation": "x", "first": "x", "second": "x"}}
FIRST, SECOND, TIE = "first", "second", "tie"


def judge_texts(folder: str, language: Language, slots: Mapping[str, Any]) -> Templates:
    """What judge.yaml has in a language.

    Args:
        slots: names and values of the brief. Raises ConfigError for a mistake in the texts.
    """
    return Templates.load(folder, "judge", language.code, _SLOTS, brief=slots, lists=("ties",))


def told(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the judge reads it."""
    return "\n\n".join(message["content"] for message in messages)


class Comparison:
    """Which of two responses is better, asked in the language of the conversation."""

    def __init__(self, folder: str, brief: Brief | None = None) -> None:
        """
        Args:
            brief: its texts may be used by the templates. Raises ConfigError for a mistake in the files of the folder.
        """
        self._slots = (brief or Brief.none()).slots()
        self._languages = Language.all(folder)
        self._texts = {code: judge_texts(folder, one, self._slots) for code, one in self._languages.items()}
        self._ties = tuple(word for texts in self._texts.values() for word in texts.lists["ties"])
        digests = {code: texts["compare"].digest for code, texts in self._texts.items()}
        self.digest = fingerprint([digests, self._slots, self._ties])

    def ask(
        self, messages: Sequence[Mapping[str, str]], first: str, second: str, columns: Mapping[str, Any]
    ) -> str:
        """What the judge is asked about two responses to a conversation.

        Args:
            columns: of the row; `language` may name the language.
        """
        values = {"conversation": told(messages), "first": first, "second": second}
        return self._texts[self._language(messages, columns)]["compare"].render({**self._slots, **values})

    def answered(self, answer: str) -> str | None:
        """first, second or tie; None where the answer says none of them."""
        return {"a": FIRST, "b": SECOND, "tie": TIE}.get(choice(answer, self._ties) or "")

    def _language(self, messages: Sequence[Mapping[str, str]], columns: Mapping[str, Any]) -> str:
        named = columns.get("language")
        if isinstance(named, str) and named in self._languages:
            return named
        text = messages[-1]["content"]
        codes = (code for code, one in self._languages.items() if check(language_spec(one), text))
        return next(codes, next(iter(self._languages)))
