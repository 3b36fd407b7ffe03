"""A judge that is a program behind a real HTTP server, a brief in two languages, and responses that break one check each."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml
from rounds import context, scored, write_scored

from nemo_sdg.console import Console
from nemo_sdg.records import Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import requirements

FOLDER = "package:conf/prompts"
BRIEFS = {
    "en": {
        "field": "retail banking", "description": "People ask about loans.", "language": "en",
        "must": ["names the assumptions", "at most 12 words"], "must_not": ["gives a guarantee", "e-mail addresses"],
    },
    "ja": {
        "field": "銀行業務", "description": "融資についての相談。", "language": "ja",
        "must": ["前提を述べる", "30文字以内"], "must_not": ["結果を保証する", "メールアドレス"],
    },
}  # fmt: skip
PLANTED = {
    "en": {
        "We assume that the rate of the loan is fixed.": [],
        "We assume that a game of football is fun.": ["off topic"],
        "The rate of the loan is low for you.": ["must: names the assumptions"],
        "We assume that the rate of the loan is fixed for a year, or two.": ["must: at most 12 words"],
        "We assume it, and there is a guarantee on the loan.": ["must not: gives a guarantee"],
        "We assume it; write to a@b.org about the loan.": ["must not: e-mail addresses"],
        "金利は固定という前提です。": ["not in the language of the brief", "must: names the assumptions"],
        "Football, with a guarantee, is the game for you.": [
            "off topic", "must: names the assumptions", "must not: gives a guarantee"
        ],
    },
    "ja": {
        "金利は固定という前提です。": [],
        "サッカーは楽しいという前提です。": ["off topic"],
        "この融資の金利は低めです。": ["must: 前提を述べる"],
        "金利は固定という前提であり、期間は一年か二年か三年のいずれかになるという前提でもあります。": ["must: 30文字以内"],
        "金利の低さを保証する前提です。": ["must not: 結果を保証する"],
        "前提はa@b.orgに聞いてください。": ["must not: メールアドレス"],
        "We assume it for now.": ["not in the language of the brief", "must: 前提を述べる"],
    },
}  # fmt: skip
"""Response -> the checks that it breaks, in their order."""
_YES, _NO = {"en": "Yes.", "ja": "はい。"}, {"en": "No, I think.", "ja": "いいえ、違います。"}


def judge(text: str) -> str | None:
    """What the judge answers to a question about a response; None for a text that is no such question."""
    found = re.search(r"=== (?:Response|回答) ===\n(.*)\n=== (?:End|ここまで) ===", text, re.DOTALL)
    if found is None:
        return None
    response, language = found[1].lower(), "ja" if "最初に「はい」" in text or "「いいえ」と最初に" in text else "en"
    if "perhaps" in response and "belong to this field" not in text:
        return "Perhaps."
    if re.search("belong to this field|この分野に属して", text):
        yes = "football" not in response and "サッカー" not in response
    elif re.search("Forbidden: gives a guarantee|禁止事項: 結果を保証する", text):
        yes = "guarantee" in response or "保証する" in response
    else:
        assert re.search("Requirement: names the assumptions|要件: 前提を述べる", text), text
        yes = "assum" in response if language == "en" else "前提" in response
    return (_YES if yes else _NO)[language]


def said(request: dict, text: str) -> dict:
    """The whole answer of a server to a request."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice]}


def answered(request: dict) -> dict:
    return said(request, judge(request["messages"][-1]["content"]))


def brief_file(folder: Path, language: str) -> Path:
    file = folder / f"brief-{language}.yaml"
    file.write_text(yaml.safe_dump(BRIEFS[language], allow_unicode=True), encoding="utf-8")
    return file


def checks(language: str) -> list[dict]:
    """What the prompts of a brief carry."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in BRIEFS[language].items()}
    return [one.to_row() for one in requirements(Brief(**fields), Language.load(FOLDER, language))]


def row(number: int, response: str, language: str = "en", **columns: object) -> Scored:
    one = scored(f"question {number}", response=response)
    return dataclasses.replace(one, extra={"checks": checks(language), **columns})


def planted(language: str) -> list[Scored]:
    return [row(number, response, language) for number, response in enumerate(PLANTED[language])]


def round_of(folder: Path, url: str, rows: list[Scored], *words: str, language: str = "en") -> Context:
    """A round whose responses are scored, with a judge of its own."""
    where = context(
        folder, "judge.backend=endpoint", f"judge.endpoint.url={url}", "judge.endpoint.retries=0", "run.rounds=1",
        f"data.synthesis.brief={brief_file(folder, language)}", "data.synthesis.kinds.open_qa=6",
        "sft.enabled=false", "reward.enabled=false", *words,
    )  # fmt: skip
    where = dataclasses.replace(where, console=Console(speaks=False))
    if not (where.folder / "scored").exists():
        write_scored(where, rows)
    return where
