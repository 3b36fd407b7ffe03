"""Lines of a brief that a program can check. Under `must` they hold of a response, under `must_not` they do not.

    at most 120 words              120文字以内        also sentences, paragraphs, characters; at least, more than, ...
    contains: X, Y                 含む: X、Y         also include:, mention:, use:
    never mention: X               触れない: X        also do not mention:, does not contain:
    no e-mail addresses            メールアドレスなし  also phone numbers, links
    language: Japanese             言語: 日本語        the language of the brief
    starts with: X, ends with: X   書き出し: X, 結び: X
    valid JSON                     JSON形式
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from nemo_sdg.synthesis.instructions import Spec, language_spec
from nemo_sdg.synthesis.languages import Language


def recognised(line: str, language: Language) -> tuple[Spec | None, bool]:
    """The program for a line, and whether its check is to hold; (None, True) for a line of no known form."""
    text = line.strip().rstrip(".。")
    for pattern, make in _FORMS:
        found = pattern.fullmatch(text)
        if found:
            spec, sense = make(found, language)
            if spec is not None and spec["kind"] == "end_with":  # its own full stop is part of an ending
                spec = {**spec, "text": line.strip()[found.start(1) :]}
            if spec is not None:
                return spec, sense
    return None, True


_UNITS = {
    "word": "words", "sentence": "sentences", "paragraph": "paragraphs", "character": "characters",
    "語": "words", "単語": "words", "文": "sentences", "段落": "paragraphs", "文字": "characters", "字": "characters",
}  # fmt: skip
_AMOUNTS = {
    "at most": ("at_most", 0), "no more than": ("at_most", 0), "up to": ("at_most", 0), "within": ("at_most", 0),
    "not more than": ("at_most", 0), "fewer than": ("at_most", -1), "less than": ("at_most", -1),
    "under": ("at_most", -1),
    "at least": ("at_least", 0), "no fewer than": ("at_least", 0), "no less than": ("at_least", 0),
    "more than": ("at_least", 1), "over": ("at_least", 1), "exactly": ("exactly", 0),
    "以内": ("at_most", 0), "以下": ("at_most", 0), "未満": ("at_most", -1), "以上": ("at_least", 0), "超": ("at_least", 1),
    "を超える": ("at_least", 1), "ちょうど": ("exactly", 0),
}  # fmt: skip
_ABSENT = {
    "e-mail address": "email", "email address": "email", "e-mail": "email", "phone number": "phone",
    "telephone number": "phone", "url": "url", "link": "url", "web address": "url",
    "メールアドレス": "email", "電話番号": "phone", "リンク": "url",
}  # fmt: skip


def _any(words: Mapping[str, Any]) -> str:
    return "(" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"


def _amount(unit: str, amount: str, number: str) -> tuple[Spec, bool]:
    relation, off = _AMOUNTS[amount.lower()]
    count = max(int(number.replace(",", "")) + off, 0)
    return {"kind": _UNITS[unit.lower()], "relation": relation, "count": count}, True


def _texts(found: re.Match, language: Language) -> tuple[Spec | None, bool]:
    texts = [part.strip(" \"'“”「」") for part in re.split(r"[,、，]", found["texts"])]
    texts = [part for part in texts if part]
    return ({"kind": "exclude" if found.re in _NEVER else "include", "texts": texts} if texts else None), True


def _language(found: re.Match, language: Language) -> tuple[Spec | None, bool]:
    asked = found["name"].strip().casefold()
    known = [name.casefold() for name in (language.code, language.name, *language.aliases)]
    return (language_spec(language) if asked in known else None), True


def _form(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_NEVER = (
    _form(r"(?:never|do(?:es)? not|must not) (?:mention|contain|include|use)s?: *(?P<texts>.+)"),
    _form(r"(?:触れない|含まない|使わない|言及しない|書かない)[:：] *(?P<texts>.+)"),
)
_FORMS = (
    (
        _form(rf"(?:use |write |is |are )?{_any(_AMOUNTS)} (\d[\d,]*) {_any(_UNITS)}s?(?: long)?"),
        lambda m, _: _amount(m[3], m[1], m[2]),
    ),
    (_form(rf"(\d[\d,]*){_any(_UNITS)}{_any(_AMOUNTS)}(?:で書く|にする)?"), lambda m, _: _amount(m[2], m[3], m[1])),
    (_form(rf"(ちょうど)(\d[\d,]*){_any(_UNITS)}"), lambda m, _: _amount(m[3], m[1], m[2])),
    *((pattern, _texts) for pattern in _NEVER),
    (_form(r"(?:contain|include|mention|use)s?: *(?P<texts>.+)"), _texts),
    (_form(r"(?:含む|触れる|使う|言及する)[:：] *(?P<texts>.+)"), _texts),
    (
        _form(rf"(?:has |have |contains |gives )?no {_any(_ABSENT)}(?:e?s)?"),
        lambda m, _: ({"kind": "absent", "what": _ABSENT[m[1].lower()]}, True),
    ),
    (
        _form(rf"{_any(_ABSENT)}(?:なし|を含まない|を書かない|を載せない|禁止)"),
        lambda m, _: ({"kind": "absent", "what": _ABSENT[m[1].lower()]}, True),
    ),
    (  # under must_not: the thing itself
        _form(rf"(?:contain |give |any )?{_any(_ABSENT)}(?:e?s)?"),
        lambda m, _: ({"kind": "absent", "what": _ABSENT[m[1].lower()]}, False),
    ),
    (_form(r"(?:language|言語)[:：] *(?P<name>.+)"), _language),
    (_form(r"(?:starts? with|書き出し)[:：] *(.+)"), lambda m, _: ({"kind": "start_with", "text": m[1].strip()}, True)),
    (_form(r"(?:ends? with|結び)[:：] *(.+)"), lambda m, _: ({"kind": "end_with", "text": m[1].strip()}, True)),
    (_form(r"(?:is )?(?:valid )?JSON(?:形式|である)?"), lambda m, _: ({"kind": "json"}, True)),
)
