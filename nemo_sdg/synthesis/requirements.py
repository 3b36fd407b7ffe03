"""The lines of a brief's `must` and `must_not` as checks: a program where a line has a known form, else a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from nemo_sdg.config import RunConfig, fingerprint
from nemo_sdg.errors import ConfigError, RowError
from nemo_sdg.records.broken import LANGUAGE, OFF_TOPIC
from nemo_sdg.synthesis.answers import yes_or_no
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.forms import recognised
from nemo_sdg.synthesis.instructions import Spec, check, checked, language_spec
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.judging import QUESTIONS, judge_texts, told

NOT_FOLLOWED = "instruction not followed"
"""How the reasons of verifiable instructions begin."""


@dataclass(frozen=True)
class Requirement:
    """One thing that holds of a response, or that must not."""

    line: str
    """In the words of the one who asks for it."""
    reason: str
    """Why a response that breaks it is dropped."""
    wanted: bool = True
    """Whether the spec, or the yes to the question, is as it should be; False for what is forbidden."""
    spec: Spec | None = None
    """The program that checks it; None asks the judge."""
    question: str = "must"
    """Template of the question to the judge, in conf/prompts/judge.yaml."""

    def to_row(self) -> dict[str, Any]:
        row = {"line": self.line, "reason": self.reason, "wanted": self.wanted}
        return {**row, "spec": dict(self.spec)} if self.spec is not None else {**row, "question": self.question}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str = "check") -> Requirement:
        """Raises RowError for a row that `to_row` cannot have written."""
        for key, kind in (("line", str), ("reason", str), ("wanted", bool)):
            if not isinstance(row.get(key), kind):
                raise RowError(f"{key} is missing or of another type", where=where, found=repr(row.get(key)))
        if row.get("spec") is not None:
            if not isinstance(row["spec"], dict):
                raise RowError("the spec is not a mapping", where=where, found=type(row["spec"]).__name__)
            # A table fills up what another spec of its column has, and this one has not.
            spec = {key: value for key, value in row["spec"].items() if value is not None}
            return cls(row["line"], row["reason"], row["wanted"], checked(spec, where))
        if row.get("question") not in QUESTIONS:
            expected = "one of " + ", ".join(QUESTIONS)
            raise RowError("no such question", where=where, found=repr(row.get("question")), expected=expected)
        return cls(row["line"], row["reason"], row["wanted"], None, row["question"])

    def holds(self, response: str, *, strict: bool = True) -> bool | None:
        """Whether a response meets it, as far as a program can say; None where the judge is to be asked."""
        return None if self.spec is None else check(self.spec, response, strict) == self.wanted


class Questions:
    """The yes/no questions to a judge, in the language of the brief."""

    @classmethod
    def load(cls, config: RunConfig) -> Questions:
        """Those of a run. Without a brief they are in judge.language. Raises ConfigError for a mistake in the files."""
        settings = config.data.synthesis
        brief = Brief.none(config.judge.language) if settings.brief is None else Brief.load(settings.brief)
        return cls(settings.templates, brief, Language.load(settings.templates, brief.language))

    def __init__(self, folder: str, brief: Brief, language: Language) -> None:
        self._values, self._language = brief.slots(), language
        self._templates = judge_texts(folder, language, self._values)
        digests = [self._templates[name].digest for name in QUESTIONS]
        self.digest = fingerprint([digests, self._values, language.positive, language.negative])

    def ask(self, requirement: Requirement, messages: Sequence[Mapping[str, str]], response: str) -> str:
        """What the judge is asked about a response to a conversation."""
        values = {"line": requirement.line, "conversation": told(messages), "response": response}
        return self._templates[requirement.question].render({**self._values, **values})

    def answered(self, requirement: Requirement, answer: str) -> bool | None:
        """Whether the requirement is met, by the judge's answer; None where that says neither yes nor no."""
        said = yes_or_no(answer, self._language)
        return None if said is None else said == requirement.wanted


def checks_of(columns: Mapping[str, Any], where: str) -> list[Requirement]:
    """The checks that stand in a row. Raises RowError for a column `checks` that is none of ours."""
    rows = columns.get("checks") or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RowError("the column checks is no list of checks", where=where, found=type(rows).__name__)
    return [Requirement.from_row(row, where) for row in rows]


def questions_of(checks: Sequence[Requirement]) -> list[Requirement]:
    """What the judge is asked about a response: each question once, whatever else holds of it."""
    asked = {(check.question, check.line): check for check in checks if check.spec is None}
    return list(asked.values())


def followed(checks: Sequence[Requirement], response: str) -> bool | None:
    """Whether a response follows all verifiable instructions of its prompt; None where that has none."""
    own = [check for check in checks if check.spec is not None and check.reason.startswith(NOT_FOLLOWED)]
    return all(check.holds(response) for check in own) if own else None


def named(reasons: Sequence[str], columns: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """Broken checks as the policy is told of them: each reason with the line that asks for it."""
    lines = {check.reason: check.line for check in checks_of(columns, where)}
    return [{"reason": reason, "line": lines.get(reason, reason)} for reason in reasons]


def requirements(brief: Brief, language: Language) -> list[Requirement]:
    """What holds of every response: its language, its subject, and each line of the brief.

    Raises ConfigError for a line of `must_not` that forbids an absence ("no e-mail addresses").
    """
    found = [
        Requirement(f"language: {language.name}", LANGUAGE, True, language_spec(language)),
        Requirement(brief.field, OFF_TOPIC, True, None, "on_topic"),
    ]
    for line in brief.must:
        spec, sense = recognised(line, language)
        found.append(Requirement(line, f"must: {line}", sense, spec, "must"))
    for line in brief.must_not:
        spec, sense = recognised(line, language)
        if spec is not None and spec["kind"] in ("absent", "exclude") and sense:
            raise ConfigError(
                "the line says no twice", where="must_not", found=repr(line), expected="the thing that is forbidden",
                way_out="move the line to must, or leave its own no away",
            )  # fmt: skip
        if spec is not None and spec["kind"] == "include":  # of several things none, and not: not all of them
            spec, sense = {**spec, "kind": "exclude"}, False
        question = "must_not" if spec is None else "must"
        found.append(Requirement(line, f"must not: {line}", spec is not None and not sense, spec, question))
    return found
